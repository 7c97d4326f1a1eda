from collections import Counter

import numpy as np
import pytest
import torch

from eeg_gan.config import UserError
from eeg_gan.data.card import Card
from eeg_gan.data.loader import LoaderConfig, Partners, Reader, balanced_at, shuffled_at
from eeg_gan.data.shards import Shards, write_shards
from eeg_gan.data.trial import Sample

CARD = Card("tiny", 100.0, ("Oz", "Pz"), "event-randomised", ("cat", "dog"), "CC0")


def samples(split, n):
    for i in range(n):
        meta = {"key": f"{split}-{i}", "label": i % 2, "subject": f"s{i % 3}"}
        yield Sample(meta["key"], np.full((2, 8), i, np.float32), np.full((4, 4, 3), i, np.uint8), meta)


@pytest.fixture
def shards(tmp_path):
    splits = {"train": samples("train", 10), "val": samples("val", 5), "test": samples("test", 1)}
    write_shards(tmp_path, splits, 3, CARD, {}, {"by": "stimulus"})
    return Shards(tmp_path / "index.json")


@pytest.mark.parametrize(("n", "batch"), [(10, 4), (7, 7), (3, 8)])
def test_each_item_once_an_epoch_across_batch_borders(n, batch):
    drawn = np.concatenate([shuffled_at(5, n, step * batch, batch) for step in range(3 * n)])
    epochs = drawn.reshape(-1, n)
    assert len(epochs) == 3 * batch
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_order_is_a_function_of_seed_and_position():
    unbroken = np.concatenate([shuffled_at(5, 10, position, 4) for position in range(0, 40, 4)])
    np.testing.assert_array_equal(shuffled_at(5, 10, 12, 4), unbroken[12:16])
    np.testing.assert_array_equal(shuffled_at(5, 10, 0, 40), unbroken)  # another batch size, the same stream
    assert not np.array_equal(shuffled_at(6, 10, 0, 40), unbroken)


LABELS = np.repeat([0, 1, 2, 3, 7], [4, 5, 6, 9, 2])


@pytest.mark.parametrize(("p", "k"), [(2, 2), (3, 4), (5, 3)])
def test_balanced_composition(p, k):
    for batch in range(30):
        indices = balanced_at(LABELS, 1, batch * p * k, p, k)
        counts = Counter(LABELS[indices])
        assert len(counts) == p and set(counts.values()) == {k}
        for c in counts:
            own = indices[LABELS[indices] == c]
            assert len(set(own)) == min(k, (LABELS == c).sum())


def test_balanced_uses_all_trials_and_all_classes_equally():
    p, k = 2, 2
    drawn = np.concatenate([balanced_at(LABELS, 1, batch * p * k, p, k) for batch in range(450)])  # 180 visits a class
    assert set(Counter(LABELS[drawn]).values()) == {180 * k}
    for c in np.unique(LABELS):
        assert set(Counter(drawn[LABELS[drawn] == c]).values()) == {180 * k // (LABELS == c).sum()}


def test_balanced_is_a_function_of_seed_and_position():
    np.testing.assert_array_equal(balanced_at(LABELS, 1, 48, 2, 2), balanced_at(LABELS.tolist(), 1, 48, 2, 2))
    assert len({tuple(balanced_at(LABELS, seed, 48, 2, 2)) for seed in range(5)}) > 1
    assert len({tuple(balanced_at(LABELS, 1, 4 * batch, 2, 2)) for batch in range(50)}) > 25
    with pytest.raises(UserError, match="9 classes cannot be drawn from 5"):
        balanced_at(LABELS, 1, 0, 9, 2)


@pytest.mark.parametrize(("cache_mb", "workers"), [(0, 0), (1, 0), (1, 3)])
def test_reader_gives_tensors(shards, cache_mb, workers):
    reader = Reader(shards, "train", cache_mb, workers)
    for _ in range(2):
        batch = reader.batch([4, 1])
        assert batch["eeg"].shape == (2, 2, 8) and batch["eeg"].dtype == torch.float32
        assert batch["image"].shape == (2, 3, 4, 4) and batch["image"].dtype == torch.uint8
        assert batch["eeg"][:, 0, 0].tolist() == [4, 1] and batch["image"][:, 0, 0, 0].tolist() == [4, 1]
        assert batch["label"].tolist() == [0, 1] and batch["subject"].tolist() == [1, 1]
        assert batch["index"].tolist() == [4, 1] and batch["label"].dtype == torch.long


def test_full_cache_keeps_to_its_room(shards):
    reader = Reader(shards, "train", 1)
    reader.mapped.room = 3 * 48
    assert reader.batch(range(10))["index"].tolist() == list(range(10)) and len(reader.mapped.cache) == 3


def test_batches_of_the_cache_cannot_be_spoilt(shards):
    reader = Reader(shards, "train")
    reader.batch([2])["eeg"].zero_()
    assert (reader.batch([2])["eeg"] == 2).all()


@pytest.mark.parametrize("image_format", ["png", "npy"])
def test_batches_that_are_held_stay_as_they_are(tmp_path, image_format):
    write_shards(tmp_path, {"train": samples("train", 10)}, 3, CARD, {}, {"by": "s"}, "float16", image_format)
    reader = Reader(Shards(tmp_path / "index.json", ("train",)), "train", workers=2)
    held = [reader.batch([i, 9 - i]) for i in range(10)]
    views = [reader.batch([i])["eeg"].numpy()[0, 1:] for i in range(10)]
    for i, batch in enumerate(held):
        assert batch["eeg"][:, 1, 3].tolist() == [i, 9 - i] == batch["image"][:, 2, 3, 1].tolist()
        assert (views[i] == i).all()


def test_order_and_batches_do_not_depend_on_workers_and_go_on_in_the_middle_of_an_epoch(shards):
    def batches(workers, start):
        reader = Reader(shards, "train", workers=workers)
        return [reader.batch(shuffled_at(7, reader.n, p, 3))["index"].tolist() for p in range(start, 30, 3)]

    assert batches(0, 0) == batches(1, 0) == batches(4, 0)
    assert batches(2, 12) == batches(0, 0)[4:]


def test_in_order_and_all(shards):
    reader = Reader(shards, "val", workers=2)
    assert [batch["index"].tolist() for batch in reader.in_order(2)] == [[0, 1], [2, 3], [4]]
    assert reader.eeg_all()[:, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_reader_refuses_the_test_split(shards):
    with pytest.raises(UserError, match="may not read the test split"):
        Reader(shards, "test")


def test_config_refuses_nonsense():
    with pytest.raises(ValueError, match="workers"):
        LoaderConfig("index.json", workers=-1)


def test_partners_are_others_of_the_same_kind_and_all_of_them_come():
    kinds = np.array([7, 3, 7, 7, 3, 9])
    partners = Partners(kinds)
    trials = np.repeat(np.arange(6), 200)
    drawn = partners.of(trials, torch.Generator().manual_seed(0))
    assert (kinds[drawn] == kinds[trials]).all()
    assert (drawn[trials == 5] == 5).all() and (drawn != trials)[trials != 5].all()
    assert set(drawn[trials == 0]) == {2, 3} and set(drawn[trials == 3]) == {0, 2} and set(drawn[trials == 1]) == {4}
    assert (drawn == partners.of(trials, torch.Generator().manual_seed(0))).all()
