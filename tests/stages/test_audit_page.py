import json
from collections import Counter

import numpy as np
import pytest
from conftest import debug

from eeg_gan import cli
from eeg_gan.data.card import Card
from eeg_gan.data.shards import write_shards
from eeg_gan.data.trial import Sample
from eeg_gan.stages import audit_page

LEGACY = ("verdict", "reasons", "notes", "overlaps", "windows", "duplicate_images", "duplicate_eeg", "time_control")


def written(folder, splits, design="event-randomised", tmin_s=-0.2, pictures=True, **changed):
    """Shards of 4 channels and 100 samples; split -> labels of its trials, presented in turn."""
    card = Card("tiny", 100.0, ("Oz", "O1", "O2", "Pz"), design, ("a", "b", "c"), "CC0", tmin_s=tmin_s)
    random, samples, n = np.random.default_rng(0), {}, 0
    for split, labels in splits.items():
        samples[split] = []
        for label in labels:
            meta = {"key": f"t{n}", "label": label, "class_name": "abc"[label], "subject": f"s{n % 2}"}
            meta |= {"recording": f"r{n % 2}", "onset_s": 3.0 * n, "tmin_s": tmin_s, "stimulus": f"i{n}", **changed}
            picture = random.integers(0, 256, (16, 16, 3), dtype=np.uint8) if pictures else None
            samples[split].append(Sample(f"t{n}", random.normal(size=(4, 100)).astype(np.float32), picture, meta))
            n += 1
    scale = {"kind": "robust", "train_trials": len(splits["train"])}
    about = {"config": {}, "scale": scale, "sfreq": 100.0, "tmin_s": tmin_s}
    write_shards(folder, samples, 64, card, about, {"by": "stimulus", "confounded": False, "digest": "d"}, "float32")
    return folder / "index.json"


def audited(tmp_path, index) -> tuple[dict, str]:
    assert cli.main(["audit", debug("audit"), f"loader.index={index}", f"run_dir={tmp_path}/audit"]) == 0
    return json.loads((tmp_path / "audit" / "audit.json").read_text()), (tmp_path / "audit" / "audit.html").read_text()


def mixed(n, classes=3, seed=0):
    return np.random.default_rng(seed).permutation(np.arange(n) % classes).tolist()


def test_page_and_json(tmp_path, runs):
    found = json.loads((runs / "audit" / "audit.json").read_text())
    assert set(LEGACY) | {"controls", "near_duplicate_images", "fitted_on", "counts", "split_policy"} <= set(found)
    assert set(found["controls"]) == {"time", "pre_stimulus", "between_blocks", "below_2hz", "shuffled_eeg", "ridge"}
    for control in found["controls"].values():
        assert control["low"] <= control["value"] <= control["high"] and 0 < control["p"] <= 1
    assert found["controls"]["ridge"]["value"] > 0.4 and found["verdict"] == "clean"
    html = (runs / "audit" / "audit.html").read_text()
    assert html.index("No leak was found") < html.index("Control experiments") < html.index("<table")
    for heading in ("What the splits share", "Labels against time", "Evoked response", "Power spectra", "By block"):
        assert heading in html
    assert "http://" not in html and "https://" not in html and html.count("data:image/png") == 5


def test_eeg_without_images_onsets_and_baseline(tmp_path):
    splits = {"train": mixed(60), "val": mixed(12), "test": mixed(24)}
    found, html = audited(tmp_path, written(tmp_path / "p", splits, tmin_s=0.0, pictures=False, onset_s=None))
    assert found["verdict"] == "suspicious" and found["near_duplicate_images"] == {}
    notes, [reason] = " ".join(found["notes"]), found["reasons"]
    assert reason.startswith("not decidable: none of the three deciding controls") and "Not decidable: none" in html
    assert '<span class="badge suspicious">' in html and "No leak was found" not in html
    for said in (
        "onsets or recordings are unknown",
        "nothing precedes the stimulus",
        "neither blocks, runs nor onsets",
    ):
        assert said in notes
    assert "Onsets are unknown" in html and "not applicable" in html and found["time_control"]["value"] is None


def test_one_recording_has_an_interval(tmp_path):
    splits = {"train": mixed(60), "test": mixed(24, seed=1)}
    index = written(tmp_path / "p", splits, recording="r", subject="s", stimulus=None, pictures=False)
    ridge = audited(tmp_path, index)[0]["controls"]["ridge"]
    assert ridge["low"] < ridge["value"] < ridge["high"] and ridge["high"] - ridge["low"] > 0.1


@pytest.mark.parametrize(
    "splits, said, verdict",
    [
        ({"train": mixed(60), "val": mixed(24)}, "the test split is empty, so controls are scored on val", "clean"),
        ({"train": mixed(60)}, "only one split holds trials", "suspicious"),
        (
            {"train": mixed(60, 1), "test": [1 + x for x in mixed(60, 2)]},
            "one half of test's stimuli is decoded from the other",
            "clean",
        ),
        ({"train": mixed(3, 1), "test": [1]}, "fewer than two classes", "suspicious"),
    ],
)
def test_splits_may_be_empty_or_of_other_classes(tmp_path, splits, said, verdict):
    found, html = audited(tmp_path, written(tmp_path / "p", splits))
    assert said in " ".join(found["notes"]) and said[4:] in html.replace("&#39;", "'")
    assert found["verdict"] == verdict and set(found["counts"]) == set(splits)
    assert any(reason.startswith("not decidable") for reason in found["reasons"]) == (verdict == "suspicious")


def test_a_class_stands_out_in_a_block_by_more_than_its_share():
    whole = Counter({0: 300, 1: 300, 2: 2400})
    for labels, said in (([0] * 11 + [1] * 9, -1), ([0] * 12 + [1] * 8, 0), ([2] * 17 + [0] * 3, -1), ([2] * 20, 2)):
        assert audit_page._dominant([{"label": label} for label in labels], whole) == said


def test_fewer_permutations_than_the_verdict_needs_are_refused(tmp_path, capsys):
    assert cli.main(["audit", debug("audit"), f"run_dir={tmp_path}/a", "permutations=2999"]) == 2
    assert "permutations must be 3000 or more" in capsys.readouterr().err
