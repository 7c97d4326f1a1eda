import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from eeg_gan.config import UserError
from eeg_gan.data import features
from eeg_gan.data.card import Card
from eeg_gan.data.shards import write_shards
from eeg_gan.data.trial import Sample
from eeg_gan.metrics.statistics import record
from eeg_gan.stages import figures, report, report_charts, report_decoding
from eeg_gan.stages.report_pictures import nearest_training, reconstructions, spaced
from eeg_gan.stages.report_runs import Runs
from eeg_gan.stages.report_tables import meaning
from eeg_gan.stages.report_tables import test_reads as count_test_reads

N = {"train": 12, "val": 4, "test": 12}
AUDIT = {
    "verdict": "clean",
    "reasons": [],
    "notes": ["a note on time"],
    "overlaps": {"stimulus": {"train/test": 0}},
    "windows": {"train/test": 0},
    "duplicate_images": {"train/test": 0},
    "duplicate_eeg": {"train/test": 0},
    "time_control": {"value": 0.5, "chance": 0.5, "p": 0.4, "n": 12},
    "counts": N,
    "design": "event-randomised",
    "shuffled_labels": {"value": 0.4, "low": 0.2, "high": 0.6, "chance": 0.5, "n": 12},
    "split_policy": {"by": "stimulus", "seed": 3},
}


def picture(split, i):
    """A test stimulus is seen by two subjects: trials 2k and 2k + 1."""
    random = np.random.default_rng([i // 2, len(split)])
    return random.integers(0, 256, (8, 8, 3), dtype=np.uint8)


def sample(split, i):
    meta = {"key": f"{split}-{i}", "label": i // 2 % 2, "subject": f"s{i % 2}", "onset_s": 2.0 * i, "recording": "r"}
    return Sample(meta["key"], np.random.default_rng(i).normal(size=(2, 8)).astype(np.float32), picture(split, i), meta)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_data(folder, pairing="trial", confounded=False):
    card = Card("tiny", 100.0, ("Oz", "Pz"), "event-randomised", ("cat <b>", "dog"), "CC0", pairing=pairing)
    splits = {split: [sample(split, i) for i in range(n)] for split, n in N.items()}
    policy = {"by": "stimulus", "confounded": confounded}
    write_shards(folder / "prepare", splits, 5, card, {"scale": {}, "sfreq": 100.0}, policy)
    write_json(folder / "prepare" / "run.json", {"headline": "28 trials", "seconds": 1.5, "verb": "prepare"})


def write_features(folder, stage):
    keys = [f"{split}-{i}" for split, n in N.items() for i in range(n)]
    z = torch.nn.functional.normalize(torch.randn(len(keys), 4, generator=torch.Generator().manual_seed(0)), dim=1)
    (folder / stage).mkdir()
    features.save(folder / stage, z, keys, {"splits": [key.split("-")[0] for key in keys], "encoder_digest": "x"})


def write_pictures(folder, stage, make):
    images = folder / stage / "images"
    images.mkdir(parents=True)
    for i in range(N["test"]):
        Image.fromarray(make(i)).save(images / f"test-{i}-0.png")
    rows = [{"key": f"test-{i}", "number": i, "file": f"images/test-{i}-0.png"} for i in range(N["test"])]
    write_json(folder / stage / "manifest.json", {"images": rows, "confounded": False})


def write_evaluation(folder):
    names = (
        "encode/kmeans_accuracy",
        "encode/knn_accuracy",
        "lda/accuracy",
        "align/retrieval_top1",
        "generate/class_accuracy",
        "generate/class_accuracy_real",
    )
    metrics = {name: record(0.61, 0.5, 0.7, 0.5, 12) for name in names}
    metrics |= {f"bands/{name}": record(0.5, 0.4, 0.6, 0.5, 12) for name in ("all", "alpha_removed", "alpha_alone")}
    metrics["encode/knn_accuracy"] |= {"p": 0.0123, "low_subjects": 0.55, "high_subjects": 0.65}
    subjects = {"encode/knn_accuracy": {f"s{i}": record(0.6 + 0.02 * i, 0.4, 0.8, 0.5, 6) for i in range(2)}}
    write_json(folder / "evaluate" / "subjects.json", subjects)
    seeds = {"encode/knn_accuracy": {"mean": 0.634, "sd": 0.011, "n": 2, "values": [0.61, 0.658]}}
    write_json(folder / "seeds.json", {"evaluate": seeds})
    write_json(folder / "evaluate" / "metrics.json", metrics | {"generate/fid[demo-classifier]": record(31.25, n=12)})
    write_json(folder / "evaluate" / "run.json", {"seconds": 2.0, "reads": {"train": 1, "test": 1}, "torch": "2.x"})
    labels = torch.tensor([i // 2 % 2 for i in range(12)])
    save_file(
        {
            "labels": labels,
            "knn_predicted": labels.clone(),
            "generated_predicted": labels.clone(),
            "gallery_trials": torch.arange(0, 12, 2),
            "retrieval_ranks": torch.arange(12) // 2,
            "retrieval_top5": torch.arange(5).repeat(12, 1),
            "time_s": torch.linspace(-0.1, 0.5, 7),
            "time_accuracy": torch.tensor([[0.5, 0.4, 0.6]]).repeat(7, 1),
            "channel_importance": torch.tensor([0.2, 0.05]),
        },
        folder / "evaluate" / "details.safetensors",
    )


def pipeline(folder, **data):
    write_data(folder, **data)
    write_json(folder / "audit" / "audit.json", AUDIT)
    for stage in ("embed_triplet", "embed"):
        write_features(folder, stage)
    write_pictures(folder, "generate", lambda i: picture("test", i) if i < 2 else 255 - picture("test", i))
    write_pictures(folder, "generate_shuffled", lambda i: picture("train", i))
    write_pictures(folder, "generate_image2eeg", lambda i: picture("train", i))
    write_evaluation(folder)
    tags = {"loss/D (nats)": 1.0, "loss/G (nats)": 2.0, "augment/p (0 to 1)": 0.0}
    rows = [{"images": images, **tags} for images in (100, 200)]
    (folder / "gan").mkdir()
    (folder / "gan" / "stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def made(folder, **keys):
    report.run(report.Config(str(folder / "report"), str(folder), **{"examples": 4, **keys}))
    return (folder / "report" / "report.html").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = pipeline(tmp_path_factory.mktemp("whole"))
    return folder, made(folder, title="A title")


def test_all_sections_are_there(whole):
    _, html = whole
    for name, (heading, _) in report.SECTIONS.items():
        assert f'<section id="{name}">' in html and f"<h2>{heading}</h2>" in html
    assert "Not in this report" not in html and "<title>A title</title>" in html
    assert '<span class="badge clean">clean</span>' in html and "61.0 %" in html and "31.250" in html


def test_p_subjects_and_seeds_stand_in_the_tables(whole):
    _, html = whole
    section = html[html.index('<section id="metrics">') :].replace("<wbr>", "")
    assert "0.012" in section and "knn_accuracy 0.550 to 0.650" in section
    assert "0.634" in section and "0.011" in section and "0.610, 0.658" in section
    assert "0.620 [0.400 to 0.800]" in section


def test_electrodes_find_their_place_with_and_without_mne(monkeypatch):
    names = ["Oz", "EEG Fpz-REF", "T3", "E128", "Cz", "T8"]
    maps = [report_decoding.places_of(names)]
    monkeypatch.setattr(report_decoding, "positions", lambda _: (_ for _ in ()).throw(UserError("no MNE")))
    maps.append(report_decoding.places_of(names))
    for places, known in maps:
        assert known == [0, 1, 2, 4, 5], "a name of no system has no place"
        (oz, fpz, t7, _, t8), radius = places, np.hypot(*places.T)
        assert oz[1] < -0.8 and fpz[1] > 0.8 and t7[0] < -0.8 and t8[0] > 0.8 and radius[3] < 0.15
    assert np.abs(maps[0][0] - maps[1][0]).max() < 0.3


def test_page_is_self_contained(whole):
    _, html = whole
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert sources and all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert not re.search(r"https?://|<script|<link|@import|url\(", html)
    assert "cat &lt;b&gt;" in html and "cat <b>" not in html


def test_maps_of_features_are_those_of_their_seed():
    z = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    first, again, other = (report_charts.neighbours(z, seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.allclose(first, other)
    assert np.array_equal(report_charts.axes(z, 0)[0], report_charts.axes(z, 0)[0])


def test_pictures_decode(whole):
    _, html = whole
    found = set(re.findall(r'src="data:image/png;base64,([^"]*)"', html))
    sizes = [Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB").size for one in found]
    assert sizes.count((8, 8)) > 10 and sum(width > 500 for width, _ in sizes) >= 4  # equal figures count once


def test_test_split_readings_are_counted(whole):
    folder, html = whole
    assert count_test_reads(Runs(folder)) == 2  # evaluate and the report itself
    assert "2, over all stages of this run" in html


def test_report_is_made_again_for_new_results_only(tmp_path):
    write_json(tmp_path / "audit" / "audit.json", AUDIT)
    made(tmp_path)
    page = tmp_path / "report" / "report.html"
    page.write_text("kept")
    assert made(tmp_path) == "kept"
    write_json(tmp_path / "audit" / "audit.json", {**AUDIT, "verdict": "suspicious", "reasons": ["a reason"]})
    assert '<span class="badge suspicious">' in made(tmp_path)


def test_missing_parts_are_named(tmp_path):
    write_data(tmp_path)
    html = made(tmp_path)
    absent = html[html.index("Not in this report") :]
    for heading in ("Seen and reconstructed", "Map of the EEG features", "Main results", "Training", "Split and audit"):
        assert f"<b>{heading}</b>" in absent
    assert "audit/audit.json is missing" in absent and "not audited" in html and "no metrics yet" in html
    assert '<section id="environment">' in html


def test_confounded_stands_in_the_title(tmp_path):
    write_data(tmp_path, confounded=True)
    html = made(tmp_path, title="Mine")
    assert "<title>Mine — confounded</title>" in html and '<span class="badge confounded">' in html


def test_pairing_by_class_is_said(tmp_path):
    write_data(tmp_path, pairing="class")
    write_pictures(tmp_path, "generate", lambda i: picture("test", i))
    html = made(tmp_path)
    assert "paired by class only" in html and "there is no best" in html and "of the same class" in html


def test_rows_run_from_best_to_worst(whole):
    folder, _ = whole
    [grid] = reconstructions(Runs(folder), 4)
    assert grid["rows"][0]["head"] == "best" and grid["rows"][0]["sub"].startswith("r = 1.00")
    scores = [float(row["sub"].split()[2].rstrip(",")) for row in grid["rows"]]
    assert scores == sorted(scores, reverse=True) and len(scores) == 4
    assert len(grid["columns"]) == len(grid["rows"][0]["cells"]) == 5  # seen, made, other subject, shuffled, nearest


def test_nearest_training_picture(whole):
    folder, _ = whole
    (trial, rms), (_, far) = nearest_training(Runs(folder), [picture("train", 6), picture("test", 0)])
    assert trial == 6 and rms < 1e-3 < far


def test_spaced_shows_the_ends_the_median_and_no_name_twice():
    order, names = list(range(101)), [f"{i}" for i in range(101)]
    assert spaced(order, names, 5) == [0, 25, 50, 75, 100]
    assert spaced(order, ["a"] * 50 + ["b"] * 51, 5) == [0, 100]
    assert spaced([0, 1], ["a", "b"], 12) == [0, 1]


def test_meaning_of_metrics():
    assert "control" in meaning("generate/class_accuracy_shuffled_eeg")
    assert "not comparable with an Inception" in meaning("generate/fid[demo-classifier]_real")
    assert "the other encoder" in meaning("encode/knn_accuracy_gain")
    assert "the ridge" in meaning("align/linear_map_top1_gain")
    assert meaning("unknown/metric") == ""


def test_class_colours_differ():
    for n in (2, 10, 20, 40):
        assert len(set(figures.class_colours(n))) == n


def test_mistakes_are_the_users(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        made(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no finished stage"):
        Runs(tmp_path)
    with pytest.raises(ValueError, match="examples"):
        report.Config("a", "b", examples=2)
