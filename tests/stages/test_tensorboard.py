"""One stream of events per run over all its starts, read by TensorBoard's own reader, and its pages in a browser."""

import json
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest
from conftest import commands, debug
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from eeg_gan import cli
from eeg_gan.training import events
from eeg_gan.training.log import Log, read_stats

TRAINED = ("encode", "align", "image2eeg", "gan")


def scalars(run_dir) -> dict[str, list[int]]:
    """The steps of every scalar, as TensorBoard sees them."""
    seen = EventAccumulator(str(run_dir), size_guidance={"scalars": 0, "images": 0}, purge_orphaned_data=False)
    seen.Reload()
    return {tag: [event.step for event in seen.Scalars(tag)] for tag in seen.Tags()["scalars"]}


def written_twice(run_dir) -> list:
    found = [(value.tag, event.step) for event in events.read(run_dir) for value in event.summary.value]
    return sorted({key for key in found if found.count(key) > 1})


def test_a_run_killed_behind_its_checkpoint_leaves_one_stream(tmp_path, runs):
    shutil.copytree(runs / "gan", tmp_path / "g")
    whole = scalars(tmp_path / "g")
    assert whole["loss/D (nats)"] == [64, 128]
    shutil.rmtree(tmp_path / "g" / "checkpoint-00000000128")  # as if it had died after the last row, before the save
    (tmp_path / "g" / "run.json").unlink()
    (tmp_path / "g" / "config.yaml").unlink()
    with open(events.paths(tmp_path / "g")[-1], "ab") as file:
        file.write(b"half a record")
    words = ["gan", debug("gan"), f"run_dir={tmp_path}/g", *commands(runs)["gan"]]
    assert cli.main(words) == 0
    assert scalars(tmp_path / "g") == whole and not written_twice(tmp_path / "g")
    assert [row["images"] for row in read_stats(tmp_path / "g")] == [64, 128]
    wall = [event.wall_time for event in events.read(tmp_path / "g")]
    assert wall == sorted(wall), "in the order in which it was written"


def test_a_stopped_run_leaves_one_stream(tmp_path, runs):
    words = ["encode", debug("encode"), f"run_dir={tmp_path}/e", *commands(runs)["encode"]]
    for stop in (16, 64, 80):
        assert cli.main([*words, f"stop_after={stop}"]) == 75
    assert cli.main(words) == 0
    assert scalars(tmp_path / "e") == scalars(runs / "encode")
    repeated = {tag for tag, _ in written_twice(tmp_path / "e")}
    assert not repeated
    assert cli.main([*words, "total_images=192"]) == 0
    assert scalars(tmp_path / "e")["final/knn_accuracy"] == [128, 192], "a longer run has a second end"


def test_going_back_within_a_start_takes_rows_away(tmp_path):
    log = Log(tmp_path, active=True)
    for images in (16, 32, 48):
        log.scalars(images, {"loss (1)": float(images)})
    log.back_to(16)
    log.scalars(32, {"loss (1)": 0.5})
    log.close()
    assert [row["images"] for row in read_stats(tmp_path)] == [16, 32]
    assert scalars(tmp_path) == {"loss (1)": [16, 32]}


def test_rows_are_in_the_file_before_the_process_can_be_killed(tmp_path):
    log = Log(tmp_path, active=True)
    log.scalars(16, {"loss (1)": 1.0})
    assert [value.tag for event in events.read(tmp_path) for value in event.summary.value] == ["loss (1)"]
    log.close()


def test_a_full_disk_is_said_once_and_by_no_thread(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(threading, "excepthook", said.append)
    log = Log(tmp_path, active=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            log.scalars(16, {"loss (1)": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not said
    threading.excepthook(threading.ExceptHookArgs((ValueError, ValueError("ours"), None, threading.current_thread())))
    assert len(said) == 1


def test_a_damaged_record_ends_what_is_kept(tmp_path):
    log = Log(tmp_path, active=True)
    for images in (16, 32):
        log.scalars(images, {"loss (1)": float(images)})
    log.close()
    path = events.paths(tmp_path)[0]
    raw = bytearray(path.read_bytes())
    raw[-6] ^= 1
    path.write_bytes(raw)
    Log(tmp_path, active=True, images=64).close()
    assert scalars(tmp_path) == {"loss (1)": [16]}


@pytest.mark.parametrize("verb", TRAINED)
def test_a_training_stage_tells_its_speed_memory_gradients_and_end(runs, verb):
    found = scalars(runs / verb)
    for tag in ("speed/training (images per s)", "speed/waiting for data (0 to 1)", "memory/process peak (GB)"):
        assert found[tag] == read_rows_steps(runs / verb), tag
    assert any(re.match(r"gradient/.*\(norm\)", tag) for tag in found)
    row = read_stats(runs / verb)[-1]
    assert row["speed/training (images per s)"] > 0 and 0 <= row["speed/waiting for data (0 to 1)"] <= 1
    final = json.loads((runs / verb / "run.json").read_text())["metrics"]
    assert final and {f"final/{name}" for name in final} == {tag for tag in found if tag.startswith("final/")}


def read_rows_steps(run_dir) -> list[int]:
    return [row["images"] for row in read_stats(run_dir) if "speed/training (images per s)" in row]


def test_gan_shows_pictures_and_the_strength_of_augmentation(runs):
    seen = EventAccumulator(str(runs / "gan"), size_guidance={"images": 0})
    seen.Reload()
    assert [event.step for event in seen.Images("fakes/validation trials")] == [64, 128]
    assert [event.step for event in seen.Scalars("augment/p (0 to 1)")] == [64, 128]
    shown = seen.Images("fakes/validation trials")[-1]
    assert (shown.width, shown.height) == (16 * 16, 2 * 16), "16 validation pictures above 16 fakes"


def test_settings_and_final_figures_are_on_the_hparams_page(runs):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    found = {}
    for event in events.read(runs / "encode"):
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "hparams":
                found[value.tag] = HParamsPluginData.FromString(value.metadata.plugin_data.content)
    start = found["_hparams_/session_start_info"].session_start_info.hparams
    assert start["optim.lr"].number_value == 1e-3 and start["encoder.name"].string_value == "tsconv"
    assert "_hparams_/session_end_info" in found and "_hparams_/experiment" not in found


def test_features_are_on_the_projectors_page_with_thumbnails(runs):
    folder = runs / "embed" / "00000" / "features"
    tensors = np.loadtxt(folder / "tensors.tsv", delimiter="\t")
    rows = (folder / "metadata.tsv").read_text().splitlines()
    assert rows[0].split("\t") == ["class", "subject", "stimulus"]
    assert len(tensors) == len(rows) - 1 == 24, "the validation split; labels of test are not read"
    side = 5 * events.THUMBNAIL
    sprite = Image.open(folder / "sprite.png")
    assert sprite.size == (side, side) and len(set(sprite.convert("L").tobytes())) > 10
    said = (runs / "embed" / "projector_config.pbtxt").read_text()
    assert "features/sprite.png" in said and said.count("embeddings {") == 1


@pytest.mark.heavy
def test_tensorboard_shows_a_run_in_a_browser(runs, tmp_path):
    browser = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)  # fmt: skip  # noqa: E501
    if browser is None:
        pytest.skip("no chromium on this machine: apt install chromium")
    words = ["-m", "tensorboard.main", "--logdir", str(runs), "--host", "127.0.0.1", "--port", "0"]
    server = subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True)
    try:
        for line in server.stderr:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            pytest.fail("TensorBoard did not start")
        wait_for_data(found[0])
        asked = f"{found[0]}/data/plugin/hparams/experiment?request=%7B%7D"
        with urllib.request.urlopen(asked, timeout=60) as answer:
            page = json.load(answer)
        assert {"optim.lr", "encoder.name"} <= {info["name"] for info in page["hparamInfos"]}
        assert {"final/knn_accuracy", "final/top1"} <= {info["name"]["tag"] for info in page["metricInfos"]}
        for page, contrast in (("timeseries", 30), ("images", 30), ("hparams", 10), ("projector", 10)):
            shot = tmp_path / f"{page}.png"
            flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=60000"]
            flags += ["--window-size=1400,1400", f"--user-data-dir={tmp_path}/profile", f"--screenshot={shot}"]
            done = subprocess.run([browser, *flags, f"{found[0]}/#{page}"], capture_output=True, text=True, timeout=240)
            assert shot.exists(), done.stderr
            grey = np.asarray(Image.open(shot).convert("L"), dtype=float)
            assert len(np.unique(grey)) > contrast, f"the page {page} is empty"
    finally:
        server.terminate()
        server.wait(60)


def wait_for_data(address: str, seconds: float = 120) -> None:
    """Until the server has read the runs: the pages are empty before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with urllib.request.urlopen(f"{address}/data/runs", timeout=60) as answer:
            if {"gan", "embed", "encode"} <= set(json.load(answer)):
                return
        time.sleep(1)
    pytest.fail("TensorBoard does not see the runs")
