import http.server
import logging
import os
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from eeg_gan.config import UserError
from eeg_gan.data.card import Card
from eeg_gan.data.loader import Reader
from eeg_gan.data.shards import Shards, write_shards
from eeg_gan.data.stream import Held, Listed, Stream, StreamConfig, listed, samples
from eeg_gan.data.trial import Sample

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
    """Serves a folder; `cut` maps a file to how many of its answers break in the middle, `gone` is not there."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.cut, self.gone, self.asked = folder, {}, set(), Counter()
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
        content = (self.server.folder / name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
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
    with pytest.raises(UserError, match=r"http://.*train-000001.tar: .*before the end.* after 1 of 4 samples and 2 re"):
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


def test_fewer_shards_than_readers_says_what_to_do(shards):
    with pytest.raises(UserError, match="6 shards cannot be divided among 1 ranks x 7 workers; lower loader.workers"):
        stream(shards, workers=7)


def test_resampling_draws_with_replacement(shards):
    batches = iter(stream(shards, StreamConfig(resample=True, shuffle=8), batch=22))
    counts = Counter(keys_of(next(batches) for _ in range(20)))
    assert set(counts) <= set(shards.keys("train")) and len(set(counts.values())) > 1 and len(counts) > 18


def test_held_keeps_what_fits(shards):
    config = StreamConfig()
    held = Held(listed(shards, "val", config), shards.form, config, 1)
    assert held.n == 3 and held.labels.tolist() == [0, 1, 0]
    torch.testing.assert_close(held.batch([2, 0])["eeg"], Reader(shards, "val").batch([2, 0])["eeg"])
    large = shards.form._replace(eeg_shape=(2, 8))
    assert Held(listed(shards, "train", config), large, config, 0).n == 1


def test_a_member_that_is_not_there_is_named(shards, tmp_path):
    write_shards(tmp_path / "bare", {"train": [Sample("t0", np.zeros((2, 8)), None, {"label": 0})]}, 1, CARD, {}, {})
    bare = Listed(str(tmp_path / "bare" / "train" / "train-000000.tar"), ("t0",), ("json", "eeg.npy", "png"))
    with pytest.raises(UserError, match="train-000000.tar: sample t0 lacks png: the shard was cut off, or is another"):
        next(iter(Stream([bare], shards.form, 1, 0, StreamConfig(**QUICK))))


def test_config_refuses_nonsense():
    with pytest.raises(ValueError, match="retries"):
        StreamConfig(retries=-1)


def test_the_log_is_quiet_when_all_is_well(shards, server, caplog):
    caplog.set_level(logging.INFO)
    list(stream(shards, StreamConfig(url=server.url), passes=1))
    assert not [r for r in caplog.records if r.name == "eeg_gan"]
