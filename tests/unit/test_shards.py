import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import webdataset

from eeg_gan.config import UserError
from eeg_gan.data.card import Card
from eeg_gan.data.shards import LONGEST_KEY, Shards, image_digest, write_shards
from eeg_gan.data.splits import digest
from eeg_gan.data.trial import META_FIELDS, Sample

CARD = Card("tiny", 100.0, ("Oz", "Pz"), "event-randomised", ("cat", "dog"), "CC0")
SIZES = {"train": 5, "val": 2, "test": 3}


def sample(split, i, image=True):
    random = np.random.default_rng([i, len(split)])
    pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8) if image else None
    meta = {"key": f"{split}-{i}", "label": i % 2, "subject": f"s{i % 3}"}
    return Sample(meta["key"], random.normal(size=(2, 8)).astype(np.float32), pixels, meta)


def write(folder, sizes=SIZES, dtype="float32", **keys):
    splits = {split: [sample(split, i, **keys) for i in range(n)] for split, n in sizes.items()}
    return write_shards(folder, splits, 2, CARD, {"scale": {}}, {"by": "stimulus", "confounded": False}, dtype)


@pytest.fixture
def index(tmp_path):
    write(tmp_path)
    return tmp_path / "index.json"


def test_what_is_written_is_read(index):
    shards = Shards(index)
    assert (shards.channels, shards.n_times, shards.image_size, shards.has_images) == (2, 8, 4, True)
    assert shards.card == CARD and shards.opened == ("train", "val") and not shards.confounded
    assert shards.n("train") == 5 and shards.keys("val") == ["val-0", "val-1"]
    assert shards.labels("train").tolist() == [0, 1, 0, 1, 0]
    for i in range(5):
        found, wanted = shards.read("train", i), sample("train", i)
        np.testing.assert_array_equal(found.eeg, wanted.eeg)
        np.testing.assert_array_equal(found.image, wanted.image)
        assert found.meta == shards.metas("train")[i] and list(found.meta.keys()) == sorted(META_FIELDS)
        assert found.meta["split"] == "train" and found.meta["image_sha256"] == image_digest(wanted.image)
        assert found.meta["onset_s"] is None


def test_index_follows_the_contract(index):
    read = json.loads(index.read_text())
    assert read["version"] == 2 and read["card"]["ch_names"] == ["Oz", "Pz"]
    assert [len(shard["samples"]) for shard in read["splits"]["train"]] == [2, 2, 1]
    assert set(read["splits"]["val"][0]) == {"file", "bytes", "sha256", "samples"}
    assert set(read["splits"]["val"][0]["samples"][0]) == {"key", "offset", "size", "crc32"}
    assert read["split_policy"]["digest"] == digest({s: [f"{s}-{i}" for i in range(n)] for s, n in SIZES.items()})


def test_bytes_are_the_same_twice(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name)
    files = [sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*")) for n in ("one", "two")]
    assert files[0] == files[1] and len([p for p in files[0] if p.suffix == ".tar"]) == 6
    for path in files[0]:
        if path.suffix:
            assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


def test_webdataset_reads_the_same(index):
    urls = sorted(map(str, (index.parent / "train").glob("*.tar")))
    found = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [raw["__key__"] for raw in found] == [f"train-{i}" for i in range(5)]
    for i, raw in enumerate(found):
        np.testing.assert_array_equal(raw["eeg.npy"], sample("train", i).eeg)
        np.testing.assert_array_equal(raw["png"], sample("train", i).image)
        assert raw["json"]["label"] == i % 2


@pytest.mark.parametrize(("image_format", "member"), [("npy", "img.npy"), ("png", "png"), ("jpg", "jpg")])
def test_nothing_but_webdataset_is_needed_for_any_image_format(tmp_path, image_format, member):
    splits = {"train": [sample("train", i) for i in range(5)]}
    write_shards(tmp_path, splits, 2, CARD, {}, {"by": "s"}, "float16", image_format)
    script = """
import glob, sys, webdataset
for raw in webdataset.WebDataset(sorted(glob.glob(sys.argv[1])), shardshuffle=False).decode("rgb8"):
    print(raw["__key__"], raw["json"]["label"], raw["eeg.npy"].dtype, raw["eeg.npy"].shape, raw[sys.argv[2]].shape,
          raw[sys.argv[2]].dtype, raw[sys.argv[2]].sum(), sep=";")
"""
    command = [sys.executable, "-I", "-c", script, f"{tmp_path}/train/*.tar", member]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout.splitlines()
    assert len(lines) == 5
    for i, line in enumerate(lines):
        *about, total = line.split(";")
        assert about == [f"train-{i}", str(i % 2), "float16", "(2, 8)", "(4, 4, 3)", "uint8"]
        assert image_format == "jpg" or int(total) == sample("train", i).image.sum()


@pytest.mark.parametrize("image_format", ["npy", "png", "jpg"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_batches_through_memory_maps_are_what_single_reads_give(tmp_path, image_format, dtype):
    splits = {"train": [sample("train", i) for i in range(5)]}
    write_shards(tmp_path, splits, 2, CARD, {}, {"by": "s"}, dtype, image_format)
    shards = Shards(tmp_path / "index.json", ("train",))
    eeg, image = shards.mapped("train").batch(np.array([4, 0, 3, 0]))
    for row, i in enumerate([4, 0, 3, 0]):
        one = shards.read("train", i)
        np.testing.assert_array_equal(eeg[row], one.eeg)
        np.testing.assert_array_equal(image[row].permute(1, 2, 0), one.image)


def test_an_index_of_version_1_is_read(index):
    old = json.loads(index.read_text())
    old["version"] = 1
    del old["shape"]["image_format"]
    for shards in old["splits"].values():
        for shard in shards:
            for entry in shard["samples"]:
                del entry["crc32"]
    index.write_text(json.dumps(old))
    shards = Shards(index)
    np.testing.assert_array_equal(shards.read("train", 3).image, sample("train", 3).image)
    np.testing.assert_array_equal(shards.mapped("train").batch(np.array([3]))[0][0], sample("train", 3).eeg)


@pytest.mark.parametrize("image_format", ["npy", "png"])
@pytest.mark.parametrize("where", ["json", "eeg", "image", "exchanged", "truncated", "missing"])
def test_local_reading_names_file_sample_and_what_was_expected(tmp_path, image_format, where):
    write_shards(
        tmp_path,
        {"train": [sample("train", i) for i in range(6)]},
        3,
        CARD,
        {},
        {"by": "s"},
        "float32",
        image_format,
    )
    shards = Shards(tmp_path / "index.json", ("train",), verify="size")
    entry = shards.index["splits"]["train"][1]["samples"][1]
    path = tmp_path / "train" / "train-000001.tar"
    raw, start = bytearray(path.read_bytes()), entry["offset"]
    spans = [int(raw[at + 124 : at + 135], 8) for at in [start]]
    eeg = start + 512 + -(-spans[0] // 512) * 512
    said = {
        "json": "train-000001.tar, sample train-4 at byte .*expected the header of train-4.json, found damaged bytes",
        "eeg": "sample train-4 at byte .*train-4.eeg.npy",
        "image": "sample train-4 at byte .*expected the header of train-4",
        "exchanged": "sample train-4 at byte .*expected train-4.json, found train-1.json: the file belongs to another",
        "truncated": "train-000001.tar.* bytes",
        "missing": "train-000001.tar: this shard is missing",
    }[where]
    if where == "exchanged":
        path.write_bytes((tmp_path / "train" / "train-000000.tar").read_bytes())
    elif where == "truncated":
        os.truncate(path, start + 100)
    elif where == "missing":
        path.unlink()
    else:
        at = {"json": start + 5, "eeg": eeg + 512 + 20, "image": eeg + 1024 + 10}[where]
        raw[at] ^= 3
        path.write_bytes(raw)
    with pytest.raises(UserError, match=said):
        shards.mapped("train").batch(np.array([4]))
    with pytest.raises(UserError, match="sample train-4|train-000001.tar"):
        shards.read("train", 4)


def test_reading_in_threads(index):
    shards = Shards(index)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: shards.read("train", i % 5).key, range(200)))
    assert found == [f"train-{i % 5}" for i in range(200)]


def test_half_precision_and_no_images(tmp_path):
    write(tmp_path, dtype="float16", image=False)
    shards = Shards(tmp_path / "index.json")
    found = shards.read("train", 0)
    assert found.image is None and found.eeg.dtype == np.float32 and not shards.has_images and shards.image_size is None
    np.testing.assert_allclose(found.eeg, sample("train", 0, image=False).eeg, rtol=1e-3)


def test_the_test_split_is_refused_unless_asked_for(index):
    shards = Shards(index)
    for ask in (shards.n, shards.keys, shards.metas, shards.labels, lambda split: shards.read(split, 0)):
        with pytest.raises(UserError, match="may not read the test split.*nothing is fitted or selected"):
            ask("test")
    assert Shards(index, ("test",)).n("test") == 3 and "test" in Shards(index, ("test",)).opened
    with pytest.raises(UserError, match="no split dev; it holds"):
        Shards(index, ("dev",))


def test_truncated_missing_and_changed_shards(index):
    shard = index.parent / "train" / "train-000001.tar"
    good = shard.read_bytes()
    shard.write_bytes(good[:-100])
    with pytest.raises(UserError, match=f"000001.tar has {len(good) - 100} bytes.*says {len(good)}.*prepare again"):
        Shards(index)
    shard.write_bytes(good[:700] + bytes([good[700] ^ 1]) + good[701:])
    with pytest.raises(
        UserError, match="train-000001.tar: SHA-256 is .* sample train-2 at byte 0: damaged"
    ):
        Shards(index)
    assert Shards(index, verify="size").n("train") == 5
    shard.unlink()
    with pytest.raises(UserError, match="train-000001.tar: this shard is missing"):
        Shards(index)
    assert Shards(index, ("val",)).n("val") == 2


def test_index_mistakes(index, tmp_path):
    with pytest.raises(UserError, match="no such index; run prepare"):
        Shards(tmp_path / "nowhere" / "index.json")
    index.write_text(index.read_text()[:-20])
    with pytest.raises(UserError, match="cannot be read as JSON"):
        Shards(index)
    index.write_text('{"version": 9}')
    with pytest.raises(UserError, match="version 9"):
        Shards(index)


def test_a_failure_leaves_the_old_shards(index):
    before = index.read_bytes()

    def broken():
        yield sample("train", 0)
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError):
        write_shards(index.parent, {"train": broken()}, 2, CARD, {}, {"by": "stimulus"})
    assert index.read_bytes() == before and Shards(index).n("train") == 5
    assert not (index.parent / ".partial-shards").exists()


def test_samples_that_disagree(tmp_path):
    good = sample("train", 0)
    bad = {
        "is there twice": good,
        "EEG is": Sample("b", good.eeg[:, :5], good.image, {"label": 0}),
        "its image is": Sample("b", good.eeg, None, {"label": 0}),
        "not finite": Sample("b", good.eeg * np.nan, good.image, {"label": 0}),
        "beyond float16": Sample("b", good.eeg + 1e6, good.image, {"label": 0}),
    }
    for said, second in bad.items():
        with pytest.raises(UserError, match=said):
            write_shards(tmp_path, {"train": [good, second]}, 2, CARD, {}, {"by": "stimulus"}, "float16")


def test_the_longest_key_is_written_and_a_longer_one_refused(tmp_path):
    for length in (LONGEST_KEY, LONGEST_KEY + 1):
        key = "k" * length
        own = Sample(key, np.zeros((2, 8), np.float32), None, {"key": key, "label": 0, "subject": "s"})
        if length == LONGEST_KEY:
            write_shards(tmp_path, {"train": [own]}, 2, CARD, {"scale": {}}, {"by": "stimulus"})
            assert Shards(tmp_path / "index.json", ("train",)).read("train", 0).key == key
            continue
        with pytest.raises(UserError, match="90 letters at most"):
            write_shards(tmp_path, {"train": [own]}, 2, CARD, {"scale": {}}, {"by": "stimulus"})


def test_a_split_that_is_not_there_names_the_cure(tmp_path):
    write(tmp_path, {"train": 2, "test": 2})
    with pytest.raises(UserError, match="no split val; it holds test, train; run prepare again with split.val above 0"):
        Shards(tmp_path / "index.json")
