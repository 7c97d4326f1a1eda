"""Two ranks read as one: every sample once an epoch locally, as many batches each when streaming."""

import os
import socket

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from eeg_gan.augment.eeg import mixup
from eeg_gan.data.card import Card
from eeg_gan.data.loader import Reader, shuffled_at
from eeg_gan.data.shards import Shards, write_shards
from eeg_gan.data.stream import Stream, StreamConfig, listed
from eeg_gan.data.trial import Sample
from eeg_gan.distributed import own_part

CARD = Card("tiny", 100.0, ("Oz", "Pz"), "event-randomised", ("cat", "dog"), "CC0")


def write(folder, n, per_shard):
    samples = (Sample(f"t{i}", np.full((2, 8), i, np.float32), None, {"label": i % 2}) for i in range(n))
    write_shards(folder, {"train": samples}, per_shard, CARD, {}, {})
    return folder / "index.json"


def rank_main(rank, port, folder, function, arguments):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.save(function(*arguments), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def on_two_ranks(folder, function, *arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(rank_main, (port, str(folder), function, arguments), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def seen(local, uneven, even, broken):
    """What a rank reads: indices of two local epochs of each index, keys of two streamed passes, and of a stream."""
    read, passes = {}, {}
    for index in local:
        reader = Reader(Shards(index, ("train",)), "train", workers=2)
        places = (shuffled_at(3, reader.n, position, 4)[own_part(4)] for position in range(0, 2 * reader.n, 4))
        read[str(index)] = [reader.batch(place)["index"].tolist() for place in places]
    for name, index, config in (
        ("uneven", uneven, StreamConfig(shuffle=4)),
        ("even", even, StreamConfig(shuffle=4)),
        ("broken", broken, StreamConfig(shuffle=4, skip_failed=True, retries=0)),
    ):
        one = Shards(index, ("train",), verify="none")
        stream = Stream(listed(one, "train", config), one.form, 2, 5, config, passes=2)
        passes[name] = [batch["key"] for batch in stream]
    endless = iter(Stream(listed(one, "train", config), one.form, 3, 5, config))
    x = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(1))
    mixed = mixup(x[own_part(6)], torch.Generator().manual_seed(2), 1.0, own_part(6), 6)
    return {"read": read, **passes, "endless": [next(endless)["key"] for _ in range(20)], "mixed": mixed}


def test_two_ranks(tmp_path):
    uneven = write(tmp_path / "uneven", 21, 4)  # 4, 4, 4, 4, 4 and 1
    even = write(tmp_path / "even", 24, 4)
    broken = write(tmp_path / "broken", 21, 4)
    os.remove(tmp_path / "broken" / "train" / "train-000001.tar")
    ragged = write(tmp_path / "ragged", 24, 5)  # 5, 5, 5, 5 and 4
    first, second = on_two_ranks(tmp_path, seen, (even, ragged), uneven, even, broken)

    for index in (even, ragged):
        for epoch in (slice(0, 6), slice(6, 12)):
            read = sum(first["read"][str(index)][epoch] + second["read"][str(index)][epoch], [])
            assert sorted(read) == list(range(24))
    for epoch in (slice(0, 6), slice(6, 12)):
        keys = sum(first["even"][epoch] + second["even"][epoch], [])
        assert sorted(keys) == sorted(f"t{i}" for i in range(24))
    for name in ("uneven", "broken"):
        assert len(first[name]) == len(second[name]) >= 8
        assert all(len(keys) == 2 for keys in first[name] + second[name])
    assert not set(sum(first["uneven"][:4], [])) & set(sum(second["uneven"][:4], [])), "a shard belongs to one rank"
    assert not {f"t{i}" for i in (4, 5, 6, 7)} & set(sum(first["broken"] + second["broken"], []))
    assert all(len(keys) == 3 for keys in first["endless"] + second["endless"])
    x = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(1))
    whole = mixup(x, torch.Generator().manual_seed(2), 1.0)
    torch.testing.assert_close(torch.cat([first["mixed"], second["mixed"]]), whole)
