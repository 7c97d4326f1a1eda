import http.server
import logging
import os
import shlex
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eeg_gan.config import UserError
from eeg_gan.data.card import Card
from eeg_gan.data.loader import Reader
from eeg_gan.data.shards import Shards, write_shards
from eeg_gan.data.stream import Held, Stream, StreamConfig, _first_of_each, listed, samples
from eeg_gan.data.trial import Sample
from eeg_gan.stages import encode

CARD = Card("tiny", 100.0, ("Oz", "Pz"), "event-randomised", ("cat", "dog"), "CC0")
QUICK = {"retry_s": 0.0, "retries": 2}


def sample(i):
    random = np.random.default_rng(i)
    pixels = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Sample(f"t{i}", random.normal(size=(2, 8)).astype(np.float32), pixels, {"label": i % 2, "subject": "s"})


@pytest.fixture
def shards(tmp_path):
    """22 training samples: shards of 4, 4, 4, 4, 4 and 2."""
    splits = {"train": map(sample, range(22)), "val": map(sample, range(50, 53))}
    write_shards(tmp_path / "data", splits, 4, CARD, {}, {"by": "stimulus"})
    return Shards(tmp_path / "data" / "index.json")


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; `cut` maps a file to how many of its answers break in the middle, `gone` is not there.

    Files in `silent` get no answer, those in `hung` half of it, for as long as the server runs.
    """

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.cut, self.gone, self.asked = folder, {}, set(), Counter()
        self.silent, self.hung, self.ended = set(), set(), threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.strip("/")
        self.server.asked[name] += 1
        if name in self.server.gone:
            return self.send_error(404)
        if name in self.server.silent:
            return self.server.ended.wait(100)
        content = (self.server.folder / name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if name in self.server.hung:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            return self.server.ended.wait(100)
        if self.server.cut.get(name, 0):
            self.server.cut[name] -= 1
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            return self.connection.close()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(shards):
    with Server(shards.path.parent) as found:
        yield found
        found.ended.set()
        found.shutdown()


def stream(shards, config=None, batch=4, split="train", **keys):
    config = config or StreamConfig(shuffle=8)
    return Stream(listed(shards, split, config), shards.form, batch, 3, config, **keys)


def keys_of(batches):
    return [key for batch in batches for key in batch["key"]]


@pytest.mark.parametrize("workers", [0, 2])
def test_one_pass_gives_each_sample_once_as_local_reading_does(shards, workers):
    batches = list(stream(shards, batch=2, passes=1, workers=workers, subjects=["s"]).batches())
    keys = keys_of(batches)
    assert sorted(keys) == sorted(shards.keys("train")) and keys != shards.keys("train")
    local = Reader(shards, "train").batch([shards.keys("train").index(key) for key in batches[0]["key"]])
    for name in ("eeg", "image", "label", "subject"):
        torch.testing.assert_close(batches[0][name], local[name])


def test_epochs_are_shuffled_anew_and_are_a_function_of_seed_and_epoch(shards):
    first, again, second = (keys_of(stream(shards, batch=2, passes=1, epoch=e)) for e in (0, 0, 1))
    assert first == again and first != second and sorted(first) == sorted(second)
    endless = iter(stream(shards, batch=11, epoch=0))
    assert keys_of([next(endless), next(endless)]) == first and keys_of([next(endless), next(endless)]) == second


def test_pipes_and_folders_and_s3(shards, tmp_path, monkeypatch):
    folder = shards.path.parent
    fake = tmp_path / "bin" / "aws"  # what the command of that name does for us: s3 cp --only-show-errors URL -
    fake.parent.mkdir()
    fake.write_text(
        f'#!/bin/sh\ntest "$1 $2 $3 $5" = "s3 cp --only-show-errors -" && cat {folder}/"${{4#s3://bucket/}}"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    for url in (None, str(folder), f"pipe:cat {folder}/{{file}}", "s3://bucket", "s3://bucket/{file}"):
        keys = keys_of(stream(shards, StreamConfig(url=url, retries=0, shuffle=0), batch=2, passes=1))
        assert sorted(keys) == sorted(shards.keys("train")), url


def test_a_connection_that_is_cut_is_taken_up_where_it_broke(shards, server, caplog):
    server.cut = {"train/train-000001.tar": 1, "train/train-000005.tar": 2}
    keys = keys_of(stream(shards, StreamConfig(url=server.url, **QUICK), batch=2, passes=1))
    assert sorted(keys) == sorted(shards.keys("train"))
    assert server.asked["train/train-000001.tar"] == 2 and server.asked["train/train-000005.tar"] == 3
    assert (
        "train-000001.tar: " in caplog.text and "bytes before the end" in caplog.text and "retry 1 of 2" in caplog.text
    )


def test_a_connection_that_is_always_cut_is_an_error_that_names_the_shard(shards, server):
    server.cut = {"train/train-000001.tar": 99}
    with pytest.raises(UserError, match=r"http://.*train-000001.tar: .*before the end.* after 2 of 4 samples and 2 re"):
        list(stream(shards, StreamConfig(url=server.url, **QUICK), passes=1))
    assert server.asked["train/train-000001.tar"] == 3


def test_a_missing_shard_ends_the_run_or_is_left_out(shards, server, caplog):
    server.gone = {"train/train-000002.tar"}
    with pytest.raises(UserError, match=r"train-000002.tar: the server says 404.*or set loader.stream.skip_failed"):
        list(stream(shards, StreamConfig(url=server.url, **QUICK), passes=1))
    caplog.clear()
    config = StreamConfig(url=server.url, skip_failed=True, **QUICK)
    keys = keys_of(stream(shards, config, batch=2, passes=1))
    left = [f"t{i}" for i in (8, 9, 10, 11)]
    assert set(keys) == set(shards.keys("train")) - set(left)
    assert len(keys) == 22  # others are shown again, so that a rank that lost a shard has as many batches as others
    assert "train-000002.tar: the server says 404" in caplog.text and "left out of this epoch" in caplog.text


def test_nothing_readable_is_an_error_and_no_endless_search(shards, server):
    server.gone = {f"train/train-{i:06d}.tar" for i in range(6)}
    with pytest.raises(UserError, match="no sample could be read from 6 shards"):
        next(iter(stream(shards, StreamConfig(url=server.url, skip_failed=True, **QUICK))))


def test_errors_of_workers_are_one_line(shards, server):
    server.gone = {f"train/train-{i:06d}.tar" for i in range(6)}
    with pytest.raises(UserError, match=r"^http://[^\n]*404[^\n]*$"):
        list(stream(shards, StreamConfig(url=server.url, **QUICK), passes=1, workers=2).batches())


@pytest.mark.parametrize("damage", ["truncated", "at a member", "foreign", "flipped"])
def test_damaged_shards_are_named(shards, damage):
    path = shards.path.parent / "train" / "train-000001.tar"
    raw = bytearray(path.read_bytes())
    sizes = [s["size"] for s in shards.index["splits"]["train"][1]["samples"]]
    if damage == "truncated":
        path.write_bytes(raw[:-3000])
    elif damage == "at a member":
        path.write_bytes(raw[: sum(sizes[:3])])
    elif damage == "foreign":
        os.replace(shards.path.parent / "train" / "train-000000.tar", path)
        path.with_name("train-000000.tar").write_bytes(raw)
    else:
        raw[600] ^= 255
        raw[100] ^= 255
        path.write_bytes(raw)
    with pytest.raises(UserError, match="train-00000[01].tar"):
        list(samples(listed(shards, "train", StreamConfig())[1], StreamConfig(**QUICK)))


def test_each_byte_of_a_sample_is_compared_with_the_index(shards):
    """A changed value of the EEG, and of an index without CRC-32: both would be read without complaint."""
    path = shards.path.parent / "train" / "train-000001.tar"
    raw, entry = bytearray(path.read_bytes()), shards.index["splits"]["train"][1]["samples"][2]
    raw[raw.index(b"\x93NUMPY", entry["offset"]) + 130] ^= 1
    path.write_bytes(raw)
    one = listed(shards, "train", StreamConfig())[1]
    with pytest.raises(
        UserError, match=rf"train-000001.tar: sample t6 at byte {entry['offset']}: damaged: expected CRC-"
    ):
        list(samples(one, StreamConfig(**QUICK)))
    old = [{name: s[name] for name in ("key", "offset", "size")} for s in one.samples]
    with pytest.raises(UserError, match="train-000001.tar: SHA-256 is .*, but index.json says .*: its bytes changed"):
        list(samples(replace(one, samples=tuple(old)), StreamConfig(**QUICK)))
    intact = shards.path.parent / "train" / "train-000000.tar"
    intact.write_bytes(intact.read_bytes() + b"more")
    with pytest.raises(UserError, match="train-000000.tar: foreign: after its 4 samples come other bytes"):
        list(samples(listed(shards, "train", StreamConfig())[0], StreamConfig(**QUICK)))


def test_what_was_read_before_the_damage_is_given(shards):
    path, entry = shards.path.parent / "train" / "train-000001.tar", shards.index["splits"]["train"][1]["samples"][2]
    raw = bytearray(path.read_bytes())
    raw[entry["offset"] + entry["size"] - 513] ^= 1
    path.write_bytes(raw)
    config = StreamConfig(skip_failed=True, **QUICK)
    assert [raw["__key__"] for raw in samples(listed(shards, "train", config)[1], config)] == ["t4", "t5"]


@pytest.mark.parametrize("how", ["silent", "hung"])
def test_a_server_that_says_no_more_ends_in_a_known_time(shards, server, how, caplog):
    setattr(server, how, {"train/train-000001.tar"})
    config = StreamConfig(url=server.url, timeout_s=0.5, retries=1, retry_s=0.0)
    start = time.monotonic()
    with pytest.raises(
        UserError, match=r"train-000001.tar: the server sent nothing for 0.5 s .loader.stream.timeout_s."
    ):
        list(stream(shards, config, passes=1))
    assert time.monotonic() - start < 50 and "retry 1 of 1" in caplog.text


def alive(pid):
    """Whether a process runs; one that has ended, but which nobody waited for, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ends(pid):
    end = time.monotonic() + 60
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not alive(pid)


@pytest.mark.parametrize("first", ["true", "head -c 9000 {shard}", "cat {shard}"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_command_that_says_no_more_is_ended_with_all_that_it_started(shards, tmp_path, first, workers):
    said = first.replace("{shard}", f"{shlex.quote(str(shards.path.parent))}/{{file}}")
    config = StreamConfig(
        url=f"pipe:{said}; : {{file}}; sleep 1000 & echo $! >> {shlex.quote(str(tmp_path))}/pids; wait",
        timeout_s=0.5,
        retries=1,
        retry_s=0.0,
    )
    start = time.monotonic()
    with pytest.raises(UserError, match=r"the command gave nothing for 0.5 s .loader.stream.timeout_s.*, after"):
        list(stream(shards, config, passes=1, workers=workers).batches())
    assert time.monotonic() - start < 100
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 2 and all(map(ends, pids))


def test_a_command_that_fails_says_so(shards):
    config = StreamConfig(url=f"pipe:head -c 5000 {shards.path.parent}/{{file}}; exit 7", **QUICK)
    with pytest.raises(UserError, match="train-00000..tar; exit 7: the command ended with status 7, after"):
        list(stream(shards, config, passes=1))
    config = StreamConfig(url=f"pipe:head -c 5000 {shards.path.parent}/{{file}}", **QUICK)
    with pytest.raises(
        UserError, match=r"sample t\d+ at byte \d+: expected \d+ bytes, found \d+: the file is truncated"
    ):
        list(stream(shards, config, passes=1))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_that_is_left_leaves_no_process(shards, tmp_path, workers):
    pids = tmp_path / "pids"
    config = StreamConfig(
        url=f"pipe:echo $$ >> {pids}; cat {shards.path.parent}/{{file}}; sleep 1000", timeout_s=100, shuffle=0
    )
    some = stream(shards, config, batch=2, workers=workers).batches()
    next(some)
    assert alive(pids.read_text().split()[-1])
    some.close()
    assert all(map(ends, pids.read_text().split()))


KILLED = """
import sys
from eeg_gan.data.shards import Shards
from eeg_gan.data.stream import Stream, StreamConfig, listed
shards = Shards(sys.argv[1], ("train",), verify="none")
config = StreamConfig(url=sys.argv[2], timeout_s=100, shuffle=0)
batches = Stream(listed(shards, "train", config), shards.form, 2, 0, config, workers=int(sys.argv[3])).batches()
next(batches)
print("reads", flush=True)
sys.stdin.read(1)
"""


@pytest.mark.parametrize("workers, how", [("0", "exit"), ("1", "exit"), ("1", "kill")])
def test_a_process_that_ends_takes_its_commands_along(shards, tmp_path, workers, how):
    pids = tmp_path / "pids"
    url = f"pipe:echo $$ >> {pids}; cat {shards.path.parent}/{{file}}; sleep 1000"
    command = [sys.executable, "-c", KILLED, str(shards.path), url, workers]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"reads\n" and alive(pids.read_text().split()[-1])
    process.kill() if how == "kill" else process.stdin.close()
    assert process.wait(100) == (-9 if how == "kill" else 0)
    assert all(map(ends, pids.read_text().split()))


def test_fewer_shards_than_readers_says_what_to_do(shards):
    with pytest.raises(UserError, match="6 shards cannot be divided among 1 ranks x 7 workers; lower loader.workers"):
        stream(shards, workers=7)


def test_resampling_draws_with_replacement(shards):
    batches = iter(stream(shards, StreamConfig(resample=True, shuffle=8), batch=22))
    counts = Counter(keys_of(next(batches) for _ in range(20)))
    assert set(counts) <= set(shards.keys("train")) and len(set(counts.values())) > 1 and len(counts) > 18


def test_held_keeps_what_fits_and_has_some_of_every_shard(shards):
    config = StreamConfig()
    held = Held(listed(shards, "val", config), shards.form, config, 1)
    assert held.n == 3 and held.labels.tolist() == [0, 1, 0]
    torch.testing.assert_close(held.batch([2, 0])["eeg"], Reader(shards, "val").batch([2, 0])["eeg"])
    every = listed(shards, "train", config)
    assert Held(every, shards.form, config, 0).n == 1
    keys = [[raw["__key__"] for raw in _first_of_each(every, config, most)] for most in (2, 8, 20, 99)]
    assert keys[0] == ["t0", "t12"] and keys[1] == ["t0", "t1", "t4", "t5", "t8", "t12", "t16", "t20"]
    assert len(keys[2]) == 19 and keys[3] == shards.keys("train")


def test_the_classes_of_a_batch_do_not_follow_the_memory_for_evaluation(shards):
    config = StreamConfig()
    for cache_mb, n in ((0, 1), (1, 22)):
        held = Held(listed(shards, "train", config), shards.form, config, cache_mb)
        assert held.n == n and encode.count_classes(shards, held) == 2


def test_a_member_that_is_not_there_is_named(shards, tmp_path):
    write_shards(tmp_path / "bare", {"train": [Sample("t0", np.zeros((2, 8)), None, {"label": 0})]}, 1, CARD, {}, {})
    (bare,) = listed(Shards(tmp_path / "bare" / "index.json", ("train",)), "train", StreamConfig())
    with pytest.raises(UserError, match="train-000000.tar: sample t0 at byte 0: expected the header of t0.png"):
        next(iter(Stream([replace(bare, members=("eeg.npy", "png"))], shards.form, 1, 0, StreamConfig(**QUICK))))


def test_config_refuses_nonsense():
    with pytest.raises(ValueError, match="retries"):
        StreamConfig(retries=-1)
    with pytest.raises(ValueError, match="timeout_s is above 0"):
        StreamConfig(timeout_s=0)


def test_the_log_is_quiet_when_all_is_well(shards, server, caplog):
    caplog.set_level(logging.INFO)
    list(stream(shards, StreamConfig(url=server.url), passes=1))
    assert not [r for r in caplog.records if r.name == "eeg_gan"]
