"""The ledger: every row can be made, what data allow is run, and what they do not is said."""

import json
import re

import pytest
import yaml
from conftest import ROOT
from published import formats_a

from eeg_gan import cli
from eeg_gan.stages import pipeline
from eeg_gan.stages.reproducing import laid_over, needed, read_ledgers

LEDGERS = read_ledgers(ROOT / "configs" / "reproduce" / "wacv2024")
SMALL = [  # of the paper's settings, so that a run takes seconds
    "stages.encode={total_images: 8, evaluate_every: 8, classes_per_batch: 2, trials_per_class: 2}",
    "stages.encode_lstm={encoder: {hidden: 4, layers: 1, dim: 8}}",
    "stages.encode_cnn={encoder: {widths: [2, 2], dim: 8}}",
    "stages.prepare={image_size: 16}",
]


def reproduce(tmp_path, *words):
    words = ["reproduce", "wacv2024", *words, f"run_dir={tmp_path}/out", f"ledgers={ROOT}/configs/reproduce"]
    code = cli.main(words)
    path = tmp_path / "out" / "wacv2024" / "ledger.json"
    return code, {row["figure"]: row for row in json.loads(path.read_text())} if path.exists() else {}


@pytest.mark.parametrize("name", LEDGERS)
def test_every_row_of_the_paper_has_stages_that_validate(name):
    ledger = LEDGERS[name]
    divisions = [ledger.published] + ([ledger.leak_free] if isinstance(ledger.leak_free, dict) else [])
    for division in divisions:
        stages = {key: laid_over(own or {}, division.get(key, {})) for key, own in ledger.stages.items()}
        steps = {step.name: step for step in pipeline.resolve("runs/x", stages)}
        for row in ledger.rows:
            assert row.source
            if row.stage is not None:
                assert steps[row.stage].module.__name__.endswith("evaluate")
                assert "prepare" in needed(stages, [row.stage]) and row.tolerance + (row.expects == "above") > 0
    assert "{data}" in str(ledger.needs) and "DATA/" in ledger.get


def test_published_formats_are_run_and_the_rest_is_said(tmp_path):
    """EEGCVPR40 under both divisions and ThoughtViz, which has no leak-free one; Kaneshiro's files are not here."""
    formats_a.cvpr40_wacv(tmp_path / "data/eeg_imagenet40_cvpr_2017_raw", subjects=3)
    (tmp_path / "data/thoughtviz/eeg/image").mkdir(parents=True)
    arrays = formats_a.thoughtviz_arrays(train=100, test=20)
    formats_a.thoughtviz_pkl(tmp_path / "data/thoughtviz/eeg/image/data.pkl", arrays)
    code, rows = reproduce(tmp_path, "--table", "figure 5", f"data={tmp_path}/data", *SMALL)
    assert code == 0 and len(rows) == 6
    for name in ("k-means accuracy, LSTM", "k-means accuracy, CNN"):
        row = rows[name]
        assert 0 <= row["published"]["value"] <= 1 and 0 <= row["leak_free"]["value"] <= 1
        assert row["published"]["confounded"] and "confounded" not in row["leak_free"]
        assert row["agrees"] == (abs(row["published"]["value"] - row["paper"]) <= row["tolerance"])
    row = rows["ThoughtViz, k-means accuracy, LSTM"]
    assert row["published"]["n"] == 20 and row["leak_free"] is None and row["cells"][4] == "none"
    row = rows["Object, k-means accuracy, LSTM"]
    assert row["cells"][3:] == ["data not here", "data not here"] and row["agrees"] is None
    said = (tmp_path / "out/wacv2024/ledger.md").read_text()
    assert "kaneshiro/S1.mat). Download S1.mat to S10.mat" in said and "windows overlap" in said
    assert "| Figure 5 | k-means accuracy, LSTM | 0.96 |" in said


OWN = {
    "data": "simulated",
    "needs": [],
    "get": "nothing, DATA/ is not read",
    "published": {"prepare": {"split": {"by": "trial", "allow_confounded": True}}},
    "leak_free": {"prepare": {"split": {"by": "stimulus", "train": 0.6, "val": 0.2, "test": 0.2}}},
    "rows": [
        {
            "place": "Table 1",
            "figure": "LDA",
            "paper": 0.0,
            "tolerance": 1,
            "stage": "evaluate",
            "metric": "lda/accuracy",
        },
        {
            "place": "Table 1",
            "figure": "far",
            "paper": 9.0,
            "tolerance": 1,
            "stage": "evaluate",
            "metric": "lda/accuracy",
        },
        {
            "place": "Table 2",
            "figure": "no gain",
            "paper": 0.0,
            "expects": "above",
            "stage": "evaluate",
            "minus": "again",
            "metric": "lda/accuracy",
        },
        {
            "place": "Table 2",
            "figure": "broken",
            "paper": 0.5,
            "tolerance": 1,
            "stage": "broken",
            "metric": "encode/nmi",
        },
        {
            "place": "Abstract",
            "figure": "per cent",
            "paper": 0.0,
            "tolerance": 1000,
            "stage": "evaluate",
            "percent_above": 0.25,
            "metric": "lda/accuracy",
        },
        {"place": "Table 2", "figure": "cited", "paper": 0.5},
    ],
    "stages": {
        "prepare": {
            "source": {
                "name": "simulated",
                "simulated": {
                    "n_classes": 3,
                    "images_per_class": 9,
                    "subjects": 2,
                    "image_size": 16,
                    "n_chans": 8,
                    "sfreq": 64,
                },
            }
        },
        "evaluate": {},
        "again": {"verb": "evaluate"},
        "embed": {"encoder": "{run_dir}/encode"},
        "broken": {"verb": "evaluate", "features": "{run_dir}/embed"},
    },
}


def test_a_stage_that_fails_leaves_a_reason_and_the_others_go_on(tmp_path):
    ledger = {**OWN, "rows": [{**row, "source": "a test"} for row in OWN["rows"]]}
    (tmp_path / "papers/own").mkdir(parents=True)
    (tmp_path / "papers/own/simulated.yaml").write_text(yaml.safe_dump(ledger, sort_keys=False))
    words = ["reproduce", "own", f"run_dir={tmp_path}/out", f"ledgers={tmp_path}/papers"]
    assert cli.main(words) == 0
    rows = {row["figure"]: row for row in json.loads((tmp_path / "out/own/ledger.json").read_text())}
    assert rows["LDA"]["agrees"] and not rows["far"]["agrees"] and "(differs)" in rows["far"]["cells"][3]
    assert rows["no gain"]["published"]["value"] == 0 and not rows["no gain"]["agrees"], "0 is not above 0"
    lda, percent = (rows[name]["published"] for name in ("LDA", "per cent"))
    for key in ("value", "low", "high"):
        assert percent[key] == pytest.approx(100 * (lda[key] - 0.25) / 0.25)
    assert rows["broken"]["cells"][3:] == ["not measured", "not measured"] and rows["cited"]["cells"][3:] == ["-", "-"]
    said = (tmp_path / "out/own/ledger.md").read_text()
    assert "simulated, published, embed: " in said and "broken: not run, as embed failed" in said
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/own/simulated/*/*/metrics.json")}
    assert len(made) == 4 and cli.main([*words, "--table", "1"]) == 0
    assert made == {path: path.stat().st_mtime_ns for path in made}, "what is done is not done again"


@pytest.mark.parametrize(
    "words, said",
    [
        (["wacv2042"], "holds no ledger; run from the folder that holds configs/.*wacv2024"),
        (["wacv2024", "--table", "77"], "no such place; it has .*Table 1"),
    ],
)
def test_mistakes_are_explained(tmp_path, words, said, capsys):
    assert cli.main(["reproduce", *words, f"ledgers={ROOT}/configs/reproduce", f"run_dir={tmp_path}"]) == 2
    assert re.search(said, " ".join(capsys.readouterr().err.split()))
