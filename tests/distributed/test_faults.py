"""One of two processes is signalled, dies, hangs or fails: both leave, with a code of ours, and it is said why."""

import os
import signal
import time

import pytest
from conftest import debug

from eeg_gan.training import checkpoint

HEAVY = pytest.mark.heavy  # the other rank, or the like: every way is tried, one of each kind in the fast tests
LONG = ["total_images=1_000_000", "checkpoint_every=64", "evaluate_every=1_000_000"]
# After so many batches, something happens in one of the processes.
AFTER = """
import os, resource, signal, sys, time
from eeg_gan.data.loader import Reader
own, calls = Reader.batch, []
def batch(self, indices):
    calls.append(1)
    if len(calls) == {n}:
        {what}
    return own(self, indices)
Reader.batch = batch
"""
REQUEUE = """
import os, signal, sys
def requeue(number, frame):
    print("asked for a requeue", flush=True)
    sys.exit(-1)
signal.signal(signal.SIGUSR2, requeue)
"""


def encode(runs, run_dir, *words):
    return ["encode", debug("encode"), f"loader.index={runs}/prepare/index.json", f"run_dir={run_dir}", *LONG, *words]


def wait_for_checkpoint(run_dir, children, seconds=200):
    end = time.monotonic() + seconds
    while not (run_dir / "checkpoint-00000000064").exists():
        assert time.monotonic() < end and not any(c.ended.is_set() for c in children), [c.said for c in children]
        time.sleep(0.1)


def one_line(said: str) -> str:
    """What an ended command says: its one line."""
    lines = [line for line in said.splitlines() if "eeg-gan: " in line]
    assert "Traceback" not in said and "terminate called" not in said and len(lines) <= 1, said
    return lines[0] if lines else ""


@pytest.mark.parametrize("asked", [pytest.param(0, marks=HEAVY), 1])
def test_a_signal_to_one_rank_saves_and_stops_both(tmp_path, runs, warm, asked):
    both = warm.ranks(encode(runs, tmp_path / "e"), tmp_path)
    wait_for_checkpoint(tmp_path / "e", both)
    both[asked].kill(signal.SIGUSR1 if asked else signal.SIGTERM)
    assert [child.wait() for child in both] == [75, 75], [child.said for child in both]
    images = checkpoint.newest(tmp_path / "e").images
    assert f"saved at {images} images" in both[0].said and images % 16 == 0


def test_only_rank_0_asks_the_launcher_for_a_requeue_after_the_save(tmp_path, runs, warm):
    both = warm.ranks(encode(runs, tmp_path / "e"), tmp_path, {0: REQUEUE, 1: REQUEUE})
    wait_for_checkpoint(tmp_path / "e", both)
    both[1].kill(signal.SIGUSR2)
    assert [child.wait() for child in both] == [255, 75], [child.said for child in both]
    assert both[0].said.index("saved at") < both[0].said.index("asked for a requeue")
    assert "asked for a requeue" not in both[1].said


@pytest.mark.parametrize("dead", [pytest.param(0, marks=HEAVY), 1])
def test_a_rank_that_dies_ends_the_other(tmp_path, runs, warm, dead):
    both = warm.ranks(encode(runs, tmp_path / "e"), tmp_path)
    wait_for_checkpoint(tmp_path / "e", both)
    both[dead].kill(signal.SIGKILL)
    assert both[1 - dead].wait() == 1, both[1 - dead].said
    said = one_line(both[1 - dead].said)
    assert "died during encode" in said and f"rank {dead} " in said, both[1 - dead].said
    assert checkpoint.newest(tmp_path / "e").images >= 64


@HEAVY
@pytest.mark.parametrize("hung", [0, 1])
def test_a_rank_that_hangs_ends_both(tmp_path, runs, warm, hung):
    hook = AFTER.format(n=6, what="time.sleep(10_000)")
    both = warm.ranks(encode(runs, tmp_path / "e"), tmp_path, {hung: hook}, EEG_GAN_RANK_TIMEOUT_S="60")
    assert [child.wait() for child in both] == [1, 1], [child.said for child in both]
    assert f"rank {hung} of 2 hangs" in both[0].said and "got on with encode" in both[0].said, both[0].said
    assert "stages/encode.py" in both[0].said and "Traceback" not in both[0].said


@HEAVY
def test_a_frozen_rank_ends_the_other(tmp_path, runs, warm):
    both = warm.ranks(encode(runs, tmp_path / "e"), tmp_path, EEG_GAN_RANK_TIMEOUT_S="20")
    wait_for_checkpoint(tmp_path / "e", both)
    both[1].kill(signal.SIGSTOP)
    assert both[0].wait() == 1, both[0].said
    assert "rank 1 of 2" in one_line(both[0].said) and "encode" in both[0].said
    both[1].kill(signal.SIGKILL)


FULL = "resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))"


@pytest.mark.parametrize(
    "who, what, said",
    [
        (0, FULL, "could not be saved"),
        (1, "raise FileNotFoundError(2, 'No such file', 'train/000.tar')", "train/000.tar"),
        pytest.param(1, "raise ValueError('a mistake of ours')", "a mistake of ours", marks=HEAVY),
    ],
    ids=["full disk", "vanished shard", "our mistake"],
)
def test_an_error_of_one_rank_ends_both(tmp_path, runs, warm, who, what, said):
    hook = AFTER.format(n=3, what=what)
    both = warm.ranks(encode(runs, tmp_path / "e"), tmp_path, {who: hook})
    codes = [child.wait() for child in both]
    assert set(codes) <= {1, 2}, (codes, [child.said for child in both])
    assert said in both[0].said and said in both[who].said
    if "mistake" not in said:
        assert codes[who] == 2 and one_line(both[who].said)
        one_line(both[1 - who].said)


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=HEAVY), 2])
@pytest.mark.parametrize("fault", ["run_dir below a file", pytest.param("no shard", marks=HEAVY)])
def test_what_all_ranks_meet_is_said_and_ends_them(tmp_path, runs, shards, warm, fault, ranks):
    run_dir = tmp_path / "e"
    if fault == "no shard":
        next(shards.parent.glob("train/*.tar")).unlink()
    else:
        (tmp_path / "file").touch()
        run_dir = tmp_path / "file" / "e"
    words = ["encode", debug("encode"), f"loader.index={shards}", f"run_dir={run_dir}", *LONG]
    children = warm.ranks(words, tmp_path) if ranks == 2 else [warm.start(words, tmp_path / "one.txt")]
    assert {child.wait() for child in children} == {2}, [child.said for child in children]
    assert "shard is missing" in one_line(children[0].said) or "cannot be written" in children[0].said
    assert not any(one_line(child.said) for child in children[1:]), "what all meet is said once"


@HEAVY
def test_two_ranks_in_a_run_directory_that_is_in_use(tmp_path, runs, warm):
    import fcntl

    (tmp_path / "e").mkdir()
    with open(tmp_path / "e" / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        both = warm.ranks(encode(runs, tmp_path / "e"), tmp_path)
        assert [child.wait() for child in both] == [2, 2], [child.said for child in both]
    assert "in use by another command" in one_line(both[0].said)


@pytest.mark.heavy
def test_torchrun_ends_when_a_rank_dies(tmp_path, runs):
    import subprocess
    import sys

    hook = tmp_path / "sitecustomize.py"
    hook.write_text(
        "import os, threading, time, signal\n"
        "def end():\n"
        f"    while not os.path.exists({str(tmp_path / 'e' / 'checkpoint-00000000064')!r}): time.sleep(0.1)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if os.environ.get('RANK') == '1': threading.Thread(target=end, daemon=True).start()\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "eeg_gan"]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", os.getcwd())])
    done = subprocess.run(
        [*launch, *encode(runs, tmp_path / "e")],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )
    assert done.returncode == 1, done.stderr
    assert "exitcode  : -9" in done.stderr and "terminate called" not in done.stderr, done.stderr
    assert checkpoint.newest(tmp_path / "e").images >= 64
