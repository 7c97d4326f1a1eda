"""What a careless person does: one clear line, exit code 2, nothing lost."""

import json
import logging
import os
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import commands, debug

from eeg_gan import cli
from eeg_gan.stages import gan
from eeg_gan.training import checkpoint


def refused(capsys, words) -> str:
    """Runs a command that must fail; returns its one line."""
    capsys.readouterr()
    assert cli.main(words) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("eeg-gan: ") and "\n" not in said and "Traceback" not in said, said
    return said


def encode(index, run_dir, *words):
    return ["encode", debug("encode"), f"loader.index={index}", f"run_dir={run_dir}", *words]


@pytest.mark.parametrize(
    "word, said",
    [
        ("optm.lr=1", "did you mean optim"),
        ("optim.lr=fast", "optim.lr: input should be a valid number"),
        ("encoder.name=ltsm", "did you mean lstm"),
        ("loss=tripelt", "did you mean triplet"),
    ],
)
def test_config_mistakes(capsys, tmp_path, word, said):
    assert said in refused(capsys, encode("nowhere.json", tmp_path / "e", word))
    assert not (tmp_path / "e").exists(), "a config that is refused leaves no run directory"


def test_no_config_and_wrong_verb(capsys):
    assert "needs a config file" in refused(capsys, ["encode"])
    assert "No such command" in refused(capsys, ["encoed", "x.yaml"])
    assert "no such config file" in refused(capsys, ["encode", "nowhere.yaml"])


def test_missing_index(capsys, tmp_path):
    assert "no such index" in refused(capsys, encode(tmp_path / "index.json", tmp_path / "e"))
    assert "is a folder; set loader.index to the index.json" in refused(capsys, encode(tmp_path, tmp_path / "f"))


def test_a_refused_command_takes_back_what_it_made_and_no_more(capsys, tmp_path):
    (tmp_path / "p" / "slurm").mkdir(parents=True)
    words = ["prepare", debug("prepare"), f"run_dir={tmp_path}/p"]
    assert "no such folder" in refused(capsys, [*words, "source.name=folder", f"source.path={tmp_path}/nowhere"])
    assert {path.name for path in (tmp_path / "p").iterdir()} == {".lock", "slurm"}
    assert cli.main(words) == 0, "the corrected command may use the same run directory"


def test_missing_shard(capsys, shards, tmp_path):
    next(shards.parent.glob("train/*.tar")).unlink()
    assert "shard is missing" in refused(capsys, encode(shards, tmp_path / "e"))


def test_truncated_shard(capsys, shards, tmp_path):
    path = next(shards.parent.glob("train/*.tar"))
    path.write_bytes(path.read_bytes()[:-1024])
    said = refused(capsys, encode(shards, tmp_path / "e"))
    assert path.name in said and "truncated" in said


def test_shard_of_another_digest(capsys, shards, tmp_path):
    path = next(shards.parent.glob("val/*.tar"))
    raw = bytearray(path.read_bytes())
    raw[-3000] ^= 1
    path.write_bytes(raw)
    assert "its bytes changed" in refused(capsys, encode(shards, tmp_path / "e"))


def test_checkpoint_of_another_architecture(capsys, runs, tmp_path):
    source = checkpoint.newest(runs / "encode").path
    shutil.copytree(source, tmp_path / "e" / source.name)
    said = refused(capsys, encode(runs / "prepare/index.json", tmp_path / "e", "encoder.filters=4"))
    assert "another architecture" in said and "there and" in said


def test_run_directory_of_another_config(capsys, runs):
    said = refused(capsys, encode(runs / "prepare/index.json", runs / "encode", "optim.lr=5e-4"))
    assert "optim.lr: 0.001 -> 0.0005" in said
    said = refused(capsys, ["gan", debug("gan"), f"run_dir={runs}/encode", *commands(runs)["gan"]])
    assert said.endswith("holds a run of encode, not of gan; choose another run_dir")


def test_run_made_from_other_shards(capsys, shards, tmp_path):
    run_dir = tmp_path / "e"
    assert cli.main(encode(shards, run_dir, "total_images=32")) == 0
    assert cli.main(["prepare", debug("prepare"), f"run_dir={shards.parent}2", "split.seed=5"]) == 0
    shutil.rmtree(shards.parent)
    shutil.move(f"{shards.parent}2", shards.parent)
    assert "made from other inputs" in refused(capsys, encode(shards, run_dir, "total_images=64"))


def test_encoder_of_another_split_is_refused(capsys, runs, tmp_path):
    assert cli.main(["prepare", debug("prepare"), f"run_dir={tmp_path}/p", "split.seed=5"]) == 0
    words = ["embed", debug("embed"), f"loader.index={tmp_path}/p/index.json", f"encoder={runs}/encode"]
    assert "trained on another split" in refused(capsys, [*words, f"run_dir={tmp_path}/z"])


def test_parent_that_is_a_file(capsys, runs, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be written" in refused(capsys, encode(runs / "prepare/index.json", tmp_path / "file" / "e"))


def test_read_only_mount(capsys, runs, tmp_path):
    mount = "mount -t tmpfs none {0} && mount -o remount,ro {0} && exec {1}"
    place = tmp_path / "mount"
    place.mkdir()
    command = f"{sys.executable} -m eeg_gan " + " ".join(encode(runs / "prepare/index.json", place / "e"))
    tried = subprocess.run(["unshare", "--mount", "--map-root-user", "sh", "-c", mount.format(place, "true")])
    if tried.returncode:
        pytest.skip("this sandbox may not mount a file system of its own")
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", mount.format(place, command)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Read-only file system" in done.stderr, done.stderr


def test_disk_full_while_saving_loses_nothing(runs, tmp_path):
    words = ["gan", debug("gan"), f"run_dir={tmp_path}/g", *commands(runs)["gan"]]
    assert cli.main([*words, "stop_after=64"]) == 75
    full = subprocess.run(
        [sys.executable, "-m", "eeg_gan", *words],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert full.returncode == 2, full.stderr
    assert "could not be saved" in full.stderr and "Traceback" not in full.stderr, full.stderr
    assert checkpoint.newest(tmp_path / "g").images == 64 and not list((tmp_path / "g").glob("checkpoint*.partial"))
    assert cli.main(words) == 0
    assert checkpoint.newest(tmp_path / "g").images == 128


def too_little_on_a_gpu(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it")


def too_little(*_):
    torch.empty(2**50)


@pytest.mark.parametrize("fault, said", [(too_little_on_a_gpu, "Tried to allocate 2.00 GiB."), (too_little, "memory")])
def test_too_little_memory_has_a_cure_with_which_the_run_goes_on(capsys, runs, tmp_path, monkeypatch, fault, said):
    monkeypatch.setattr(cli.log, "handlers", [logging.NullHandler()])  # what a run says is not looked at here
    shutil.copytree(runs / "gan", tmp_path / "g")
    words = ["gan", debug("gan"), f"run_dir={tmp_path}/g", *commands(runs)["gan"], "total_images=144"]
    with monkeypatch.context() as patched:
        patched.setattr(gan, "step_generator", fault)
        found = refused(capsys, words)
        assert said in found and "Cure: set micro_batch=4, with which the same is learnt" in found
    assert cli.main([*words, "micro_batch=4"]) == 0
    assert checkpoint.newest(tmp_path / "g").images == 144


def test_two_commands_in_one_run_directory(capsys, runs, tmp_path):
    import fcntl

    run_dir = tmp_path / "e"
    run_dir.mkdir()
    with open(run_dir / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "in use by another command" in refused(capsys, encode(runs / "prepare/index.json", run_dir))


def test_a_folder_dataset_with_a_mistake_names_file_and_row(capsys, tmp_path):
    assert cli.main(["init-dataset", f"path={tmp_path}/mine"]) == 0
    words = ["prepare", debug("prepare"), "source.name=folder", f"source.path={tmp_path}/mine", f"run_dir={tmp_path}/p"]
    said = refused(capsys, words)
    assert "trials.csv" in said and "row 2" in said and "cat01.png does not exist" in said


def test_pipeline_checks_every_config_first(capsys, tmp_path):
    said = refused(capsys, ["pipeline", debug("pipeline"), f"run_dir={tmp_path}/p", "stages.gan.bacth=3"])
    assert "stages.gan" in said and "did you mean batch" in said and not (tmp_path / "p").exists()


def test_damaged_run_record(capsys, runs, tmp_path):
    shutil.copytree(runs / "embed", tmp_path / "z")
    (tmp_path / "z" / "run.json").write_text("{")
    words = ["embed", debug("embed"), *commands(runs)["embed"], f"run_dir={tmp_path}/z"]
    assert "run.json is damaged" in refused(capsys, words)
    assert json.loads((runs / "embed" / "run.json").read_text())["done"]
