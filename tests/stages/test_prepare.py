"""Bounded, parallel, restartable preparation: the bytes are those of one unbroken run of one process."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import yaml
from conftest import debug
from PIL import Image

from eeg_gan import cli
from eeg_gan.config import UserError, load
from eeg_gan.data import cutting, memory, pictures
from eeg_gan.data.shards import Shards
from eeg_gan.stages import prepare
from eeg_gan.training.preempt import Stopped

N = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of 60 trials of 10 pictures."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    np.save(folder / "eeg.npy", random.normal(size=(N, 4, 100)).astype(np.float32) * 10)
    card = {"name": "d", "sfreq": 100.0, "ch_names": list("abcd"), "design": "event-randomised", "licence": "CC0"}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(card))
    rows = [f"c{i % 2},s{i % 3},{i % 10}.png" for i in range(N)]
    (folder / "trials.csv").write_text("label,subject,image\n" + "\n".join(rows))
    return folder


def words(data, run_dir, *more):
    own = ["source.name=folder", f"source.path={data}", f"run_dir={run_dir}", "shard_samples=7", "image_size=16"]
    return ["prepare", debug("prepare"), *own, "preprocess.baseline=false", "split.by=trial", *more]


ALLOWED = "split.allow_confounded=true"  # pictures are repeated; the split does not matter here


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The unbroken run."""
    folder = tmp_path_factory.mktemp("whole")
    assert cli.main(words(data, folder, ALLOWED)) == 0
    return files(folder)


def files(folder):
    found = {p.relative_to(folder): p.read_bytes() for p in folder.glob("*/*") if p.suffix == ".tar"}
    return found | {"index.json": (folder / "index.json").read_bytes()}


@pytest.mark.parametrize("scale", ["robust", "zscore", "none"])
def test_bytes_do_not_depend_on_the_number_of_processes(data, tmp_path, whole, scale):
    more = [ALLOWED, f"preprocess.scale={scale}"]
    assert cli.main(words(data, tmp_path / "8", "workers=8" if scale == "robust" else "workers=3", *more)) == 0
    if scale != "robust":
        assert cli.main(words(data, tmp_path / "1", *more)) == 0
    assert files(tmp_path / "8") == (whole if scale == "robust" else files(tmp_path / "1"))
    assert not (tmp_path / "8" / ".partial-shards").exists() and len(whole) == 6 + 2 + 2 + 1


def test_the_scale_is_that_of_the_training_trials_alone(data, tmp_path):
    given = [ALLOWED, "preprocess.scale=zscore", "preprocess.highpass_hz=null"]
    assert cli.main(words(data, tmp_path, *given)) == 0
    shards = Shards(tmp_path / "index.json")
    numbers = [int(key.split("-")[1]) for key in shards.keys("train")]
    train = np.load(data / "eeg.npy")[numbers].astype(np.float64)
    scale = shards.preprocessing["scale"]
    np.testing.assert_allclose(scale["center"], train.mean(axis=(0, 2)), rtol=1e-9)
    np.testing.assert_allclose(scale["spread"], train.std(axis=(0, 2)), rtol=1e-9)
    assert scale["train_trials"] == len(train)


# 36 trials are filtered for the statistics, then 36, 12 and 12 are written, 7 to a shard
@pytest.mark.parametrize("stop, n_kept", [(1, 0), (20, 0), (40, 0), (60, 3), (95, 9)])
def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(data, tmp_path, whole, monkeypatch, stop, n_kept):
    told = []

    def tick(self, n):
        told.append(n)
        if sum(told) >= stop:
            raise Stopped("stop")

    with monkeypatch.context() as patch:
        patch.setattr(prepare._Tick, "__call__", tick)
        assert cli.main(words(data, tmp_path, ALLOWED)) == 75
    assert not (tmp_path / "index.json").exists()
    kept = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob(".partial-shards/*/*.tar")}
    assert len(kept) == n_kept
    made = []
    monkeypatch.setattr(cutting.Cut, "make", lambda *a, own=cutting.Cut.make: made.append(a[1].file) or own(*a))
    assert cli.main(words(data, tmp_path, ALLOWED)) == 0
    assert files(tmp_path) == whole
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*/*.tar") if p.name in kept} == kept
    assert not any(os.path.basename(file) in kept for file in made)


def test_a_killed_run_keeps_what_was_whole_and_makes_damaged_parts_anew(data, tmp_path, whole):
    command = [sys.executable, "-c", SLOW, *words(data, tmp_path, ALLOWED, "workers=2")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    journal, end = tmp_path / ".partial-shards" / "journal.jsonl", time.monotonic() + 150
    while not (journal.exists() and journal.read_text().count("train-") >= 3):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.3)  # the workers see that their parent has gone
    kept = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob(".partial-shards/train/*.tar")}
    damaged = sorted(tmp_path.glob(".partial-shards/train/*.tar"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with journal.open("a") as file:
        file.write('{"file": "train/tr')  # a line that was torn
    assert cli.main(words(data, tmp_path, ALLOWED)) == 0
    assert files(tmp_path) == whole
    now = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "train").glob("*.tar")}
    assert now[damaged.name] != kept[damaged.name] and sum(now[name] == kept[name] for name in kept) >= 2


SLOW = """
import sys, time
from eeg_gan import cli
from eeg_gan.data.parallel import Journal
add = Journal.add
Journal.add = lambda self, record: (add(self, record), time.sleep(0.3 * record["file"].startswith("train")))
if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]))
"""


def test_sigterm_leaves_with_75(data, tmp_path, whole):
    process = subprocess.Popen([sys.executable, "-c", SLOW, *words(data, tmp_path, ALLOWED)], stderr=subprocess.PIPE)
    journal, end = tmp_path / ".partial-shards" / "journal.jsonl", time.monotonic() + 150
    while not (journal.exists() and "train-" in journal.read_text()):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)[1].decode()
    assert process.returncode == 75 and "finished shards are kept" in said, said
    assert cli.main(words(data, tmp_path, ALLOWED)) == 0 and files(tmp_path) == whole


def test_other_data_do_not_continue_the_old_parts(data, tmp_path, whole, monkeypatch):
    folder = tmp_path / ".partial-shards"
    folder.mkdir()
    (folder / "journal.jsonl").write_text('{"identity": "other"}\n{"file": "train/train-000000.tar"}\n')
    (folder / "left").write_text("")
    assert cli.main(words(data, tmp_path, ALLOWED)) == 0 and files(tmp_path) == whole


def test_another_number_of_workers_is_the_same_run(data, tmp_path, whole):
    assert cli.main(words(data, tmp_path, ALLOWED)) == 0
    before = (tmp_path / "index.json").stat().st_mtime_ns
    assert cli.main(words(data, tmp_path, ALLOWED, "workers=4")) == 0
    assert (tmp_path / "index.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("named", [True, False])
def test_a_repeated_picture_is_encoded_once(data, tmp_path, monkeypatch, named):
    encoded, read = [], []
    own = pictures.encode_image
    monkeypatch.setattr(pictures, "encode_image", lambda *a: encoded.append(1) or own(*a))
    source = type(prepare.SOURCES["folder"](load(prepare.Config, debug("prepare"), words(data, tmp_path)[2:]).source))
    image = source.image
    monkeypatch.setattr(source, "image", lambda *a: read.append(1) or image(*a))
    if not named:
        monkeypatch.setattr(source, "image_key", None)
    monkeypatch.setattr(pictures, "ROOM", 2000)  # two pictures: the others come from the folder
    assert cli.main(words(data, tmp_path, ALLOWED)) == 0
    assert len(encoded) == 10 and len(read) == (10 if named else N + 1)


@pytest.mark.parametrize("image_format, suffix", [("png", "png"), ("jpg", "jpg"), ("npy", "img.npy")])
def test_every_image_format_is_read_back(data, tmp_path, image_format, suffix):
    import tarfile

    more = [f"image_format={image_format}", "dtype=float16", ALLOWED]
    assert cli.main(words(data, tmp_path, *more)) == 0
    shards = Shards(tmp_path / "index.json")
    with tarfile.open(tmp_path / "train" / "train-000000.tar") as tar:
        assert tar.getnames()[2].split(".", 1)[1] == suffix
    sample = shards.read("train", 0)
    with Image.open(data / f"{int(sample.key.split('-')[1]) % 10}.png") as picture:
        wanted = np.asarray(picture.resize((16, 16), Image.Resampling.BICUBIC)).astype(int)
    difference = np.abs(sample.image.astype(int) - wanted)
    assert difference.max() == 0 if image_format != "jpg" else 0 < difference.mean() < 20


def test_memory_that_is_not_there_is_refused_with_both_numbers(data, tmp_path, monkeypatch):
    config = load(prepare.Config, debug("prepare"), words(data, tmp_path)[2:])
    source = prepare.SOURCES["folder"](config.source)
    source.peak_bytes = 3 * 2**30
    monkeypatch.setattr(memory, "available", lambda: 5 * 2**30)
    prepare._check_memory(source, config)
    with pytest.raises(UserError, match=r"in 2 processes takes 6.0 GiB.*5.0 GiB are available; lower workers"):
        prepare._check_memory(source, replace(config, workers=1))


def test_available_memory_is_known():
    assert memory.available() > 2**20


def test_a_source_that_fails_in_a_worker_is_one_line(data, tmp_path, capsys):
    broken = tmp_path / "data"
    broken.mkdir()
    for path in data.iterdir():
        os.link(path, broken / path.name)
    os.remove(broken / "eeg.npy")
    eeg = np.load(data / "eeg.npy")
    eeg[55, 2, 3] = np.nan
    np.save(broken / "eeg.npy", eeg)
    assert cli.main(words(broken, tmp_path / "p", ALLOWED, "workers=2")) == 2
    assert "row 57: eeg.npy holds nan (channel c, sample 3)" in capsys.readouterr().err


def damage(folder):
    """What is wrong with each file, by what must be said of it."""
    shards = sorted((folder / "train").glob("*.tar"))
    raw = [bytearray(path.read_bytes()) for path in shards]
    index = json.loads((folder / "index.json").read_text())
    sample = index["splits"]["train"][0]["samples"][3]
    raw[0][sample["offset"] + sample["size"] - 600] ^= 1
    raw[1] = raw[1][: len(raw[1]) // 2]
    for path, content in list(zip(shards, raw, strict=True))[:2]:
        path.write_bytes(content)
    os.remove(shards[2])
    os.replace(shards[4], shards[3])
    (folder / "train" / "train-000099.tar").write_bytes(b"")
    return {
        f"train-000000.tar, sample {sample['key']} at byte {sample['offset']}: damaged: expected CRC-32": 1,
        "train-000001.tar has": 1,
        "the file is truncated": 4,
        "train-000002.tar: this shard is missing; index.json says": 1,
        "the file belongs to another index": 7,
        "train-000004.tar: this shard is missing": 1,
        "train-000099.tar: foreign: index.json lists no such file": 1,
    }


def test_verify_names_every_file_and_sample(data, tmp_path, caplog, capsys, monkeypatch):
    monkeypatch.setattr("eeg_gan.cli.set_up_logging", lambda: None)  # so that the log reaches the test
    assert cli.main(words(data, tmp_path, ALLOWED)) == 0
    command = ["prepare", "--verify", *words(data, tmp_path, ALLOWED)[1:]]
    caplog.set_level("INFO", "eeg_gan")
    assert cli.main(command) == 0
    assert "10 shards with 60 samples are as index.json says" in caplog.text
    caplog.clear()
    said = damage(tmp_path)
    assert cli.main(command) == 2
    for text, count in said.items():
        assert sum(text in line for line in caplog.text.splitlines()) == count, (text, caplog.text)
    assert "problems in 10 shards" in capsys.readouterr().err


def test_verify_sees_another_index(data, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("eeg_gan.cli.set_up_logging", lambda: None)
    assert cli.main(words(data, tmp_path, ALLOWED)) == 0
    index = json.loads((tmp_path / "index.json").read_text())
    index["splits"]["val"][0]["samples"].pop()
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert cli.main(["prepare", "--verify", *words(data, tmp_path, ALLOWED)[1:]]) == 2
    assert "not those of its split digest" in caplog.text and "but run.json says" in caplog.text


def test_other_verbs_have_no_verify(tmp_path, capsys):
    assert cli.main(["encode", "--verify", debug("encode"), f"run_dir={tmp_path}"]) == 2
    assert "has no --verify" in capsys.readouterr().err
