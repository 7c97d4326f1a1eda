"""The 200-way protocol of THINGS-EEG2, on small files in the data set's own format."""

import json

import pytest
from conftest import ROOT
from published import formats_b as published

from eeg_gan import cli


@pytest.mark.parametrize("average", [True, False])
def test_averaged_test_trials_against_all_test_pictures(tmp_path, average):
    folder = published.things_eeg2(tmp_path / "data", write=published.write_pickle)
    source = {"things_eeg2.images": folder, "things_eeg2.metadata": folder / "image_metadata.npy", "path": folder}
    source |= {"things_eeg2.val_concepts": 2, "things_eeg2.subjects": "[sub-01]", "things_eeg2.average": average}
    words = [f"stages.prepare.source.{key}={value}" for key, value in source.items()]
    words += ["stages.prepare.image_size=16", "stages.align.tower={model: tiny}"]
    words += ["stages.align.architecture={name: tsconv, dim: 8, filters: 4}", "stages.align.batch=8"]
    words += [f"stages.align.{key}=16" for key in ("total_images", "evaluate_every", "checkpoint_every")]
    config = ROOT / "configs" / "pipeline" / "things-eeg2-200way.yaml"
    assert cli.main(["pipeline", str(config), f"run_dir={tmp_path}/out", *words]) == 0
    metrics = json.loads((tmp_path / "out" / "evaluate" / "metrics.json").read_text())
    top1 = metrics["align/retrieval_top1"]
    assert top1["chance"] == pytest.approx(1 / published.N_TEST) and top1["n"] == 3 * (1 if average else 8)
    repeated = {name: m["n"] for name, m in metrics.items() if "eeg_mean_of" in name and name.endswith("top1")}
    named = {f"align/retrieval_eeg_mean_of_{r}_top1": 3 * n for r, n in (("2", 4), ("4", 2), ("all", 1))}
    assert repeated == ({} if average else named)
    assert (tmp_path / "out" / "report" / "report.html").exists()
    assert metrics["align/retrieval_2way_top1"]["chance"] == 0.5
