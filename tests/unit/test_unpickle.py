import os
import pickle
import struct
import subprocess
import zipfile
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from published import formats_a

from eeg_gan.config import UserError
from eeg_gan.data import unpickle
from eeg_gan.data.unpickle import ForbiddenGlobal, load_npy, load_pickle, load_pth

PLAIN = {
    "numbers": [1, -2.5, 1j, True, None, 2**70],
    "texts": ("a", "\u00e4", b"\xff\x00", b"", bytearray(b"12")),
    "sets": [{1, 2}, frozenset("ab")],
    "ordered": OrderedDict(b=1, a=2),
    "scalars": [np.float32(1.5), np.int64(3), np.bool_(True)],
}
ARRAYS = {
    "matrix": np.arange(6.0).reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
    "foreign": np.arange(3, dtype=">i4"),
    "words": np.array(["ab", "c"]),
    "bytes": np.array([b"ab", b"c"]),
    "nothing": np.zeros((0, 4), dtype=np.float32),
    "one": np.array(7, dtype=np.uint8),
}


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def named(module: str, name: str, argument: str) -> bytes:
    """A pickle that calls MODULE.NAME(ARGUMENT), whether or not there is such a thing; dots reach into attributes."""
    words = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name))
    return b"\x80\x04" + words + b"\x93\x8c" + bytes([len(argument)]) + argument.encode() + b"\x85R."


@pytest.fixture
def marker(tmp_path):
    """A file that an attack would make; it must never be there."""
    path = tmp_path / "marker"
    yield path
    assert not path.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_containers_and_arrays(tmp_path, protocol):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({**PLAIN, **ARRAYS}, protocol))
    found = load_pickle(tmp_path / "x.pkl")
    assert {name: found[name] for name in PLAIN} == PLAIN
    for name, array in ARRAYS.items():
        assert found[name].shape == array.shape and found[name].dtype.kind == array.dtype.kind
        assert np.array_equal(found[name], array) and found[name].flags.c_contiguous == array.flags.c_contiguous
    again = pickle.loads(pickle.dumps(found))
    assert type(again["matrix"]) is np.ndarray and np.array_equal(again["matrix"], ARRAYS["matrix"])


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_names_of_numpy_1_and_2(tmp_path, core):
    written = pickle.dumps(ARRAYS["matrix"], protocol=2)
    (tmp_path / "x.pkl").write_bytes(written.replace(b"numpy._core", core.encode()))
    assert np.array_equal(load_pickle(tmp_path / "x.pkl"), ARRAYS["matrix"])


def test_pickle_of_python_2(tmp_path):
    arrays = formats_a.thoughtviz_arrays(4, 2)
    formats_a.thoughtviz_pkl(tmp_path / "data.pkl", arrays)
    found = load_pickle(tmp_path / "data.pkl")
    reference = pickle.loads((tmp_path / "data.pkl").read_bytes(), encoding="latin1")
    assert found.keys() == arrays.keys() == reference.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    assert all(np.array_equal(found[name], reference[name]) for name in arrays)


def test_object_array_and_plain_npy(tmp_path):
    np.save(tmp_path / "plain.npy", ARRAYS["matrix"])
    assert np.array_equal(load_npy(tmp_path / "plain.npy"), ARRAYS["matrix"])
    row = [np.full((300, 300), 7.0), np.arange(4), 3, "n01", OrderedDict(a=np.float32(2))]
    formats_a.objects(tmp_path / "objects.npy", row)
    found = load_npy(tmp_path / "objects.npy")
    assert (found[0] == 7).all() and found[1].tolist() == [0, 1, 2, 3] and found[2:].tolist() == row[2:]
    skimmed = load_npy(tmp_path / "objects.npy", skim=True)
    assert skimmed[0].shape == (300, 300) and not skimmed[0].any(), "large arrays are passed over"
    assert skimmed[1].tolist() == [0, 1, 2, 3] and skimmed[2:].tolist() == row[2:]


def attacks(marker) -> dict[str, tuple[object, str]]:
    touch = f"touch {marker}"
    return {
        "system": (Calls(os.system, touch), f"{os.name}.system"),
        "eval": (Calls(eval, f"open({str(marker)!r}, 'w')"), "builtins.eval"),
        "getattr": (Calls(getattr, "text", "upper"), "builtins.getattr"),
        "open": (Calls(open, str(marker), "w"), "io.open"),
        "popen": (Calls(subprocess.Popen, touch, -1, None, None, None, None, None, True, True), "subprocess.Popen"),
        "numpy.load": (Calls(np.load, str(marker)), "numpy.load"),
        "numpy.save": (Calls(np.save, str(marker), 1), "numpy.save"),
        "numpy.testing": (
            Calls(np.testing._private.utils.runstring, f"open({str(marker)!r}, 'w')", {}),
            "numpy.testing._private.utils.runstring",
        ),
        "defaultdict": (defaultdict(list), "collections.defaultdict"),
        "torch": (Calls(torch.load, str(marker)), "torch.serialization.load"),
        "import": (Calls(__import__, "os"), "builtins.__import__"),
    }


def today(text: str) -> str:
    """Names of Python 2, which old protocols use, as they are called now."""
    for old, new in (("__builtin__", "builtins"), ("builtins.open", "io.open"), ("commands.", "subprocess.")):
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize("name", attacks("x"))
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_malicious_pickle_is_refused_by_name(tmp_path, marker, name, protocol):
    evil, forbidden = attacks(marker)[name]
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps({"x_train": evil}, protocol))
    with pytest.raises(ForbiddenGlobal) as error:
        load_pickle(path)
    assert str(path) in str(error.value) and forbidden in today(str(error.value))


@pytest.mark.parametrize("name", attacks("x"))
@pytest.mark.parametrize("skim", [False, True])
def test_malicious_object_array_is_refused_by_name(tmp_path, marker, name, skim):
    evil, forbidden = attacks(marker)[name]
    formats_a.objects(tmp_path / "trial.npy", [np.zeros(3), evil])
    with pytest.raises(ForbiddenGlobal, match=forbidden.replace(".", r"\.")):
        load_npy(tmp_path / "trial.npy", skim)


@pytest.mark.parametrize("name", attacks("x"))
@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pth_is_refused_by_name(tmp_path, marker, name, zipped):
    evil, forbidden = attacks(marker)[name]
    torch.save({"dataset": [evil]}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ForbiddenGlobal) as error:
        load_pth(tmp_path / "x.pth")
    assert forbidden.removeprefix("builtins.").removeprefix("io.") in today(str(error.value))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("numpy", "ndarray.tofile"),
        ("numpy", "core.multiarray.fromfile"),
        ("collections", "OrderedDict.__init__.__globals__"),
        ("builtins", "set.__reduce_ex__"),
        ("numpy.core.multiarray", "_reconstruct.__globals__"),
        ("eeg_gan.data.unpickle", "os.system"),
    ],
)
def test_attributes_of_admitted_names_are_refused(tmp_path, marker, module, name):
    (tmp_path / "x.pkl").write_bytes(named(module, name, f"touch {marker}"))
    with pytest.raises(ForbiddenGlobal, match=f"{module}.{name}"):
        load_pickle(tmp_path / "x.pkl")


def storage_of(kind: bytes) -> bytes:
    """data.pkl of a .pth whose only tensor lies in a storage of the class `kind`."""
    text = b"".join(b"X" + struct.pack("<I", len(word)) + word for word in (b"storage",))
    key = b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((" + text + b"c" + kind + key + b"tQK\x00)tR."


@pytest.mark.parametrize("kind", ["posix\nsystem\n", "builtins\nexec\n", "torch\nhub.load\n", "torch.hub\nload\n"])
def test_storage_of_an_odd_class_is_refused(tmp_path, marker, kind):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as file:
        file.writestr("x/data.pkl", storage_of(kind.encode()))
        file.writestr("x/version", "3\n")
        file.writestr("x/data/0", bytes(4))
    with pytest.raises(ForbiddenGlobal, match=kind.strip().replace("\n", ".").removeprefix("builtins.")):
        load_pth(tmp_path / "x.pth")


DTYPE = b"cnumpy\ndtype\n(%s\x89\x88tR(K\x03U\x01|N%s%sJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
START = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01K\x02\x85"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (DTYPE % (b"U\x02f8", b"N", b"N") + b"\x89U\x08" + b"A" * 8 + b"tb.", "contents have another size"),
        (DTYPE % (b"U\x02O8", b"N", b"N") + b"\x89U\x10" + b"A" * 16 + b"tb.", "contents have another size"),
        (DTYPE % (b"U\x02V8", b"N", b"N") + b"\x89U\x10" + b"A" * 16 + b"tb.", "an array of type 'V8'"),
        (DTYPE % (b"U\x02f8", b"U\x01a\x85", b"}U\x01aU\x01bs") + b"\x89U\x10" + b"A" * 16 + b"tb.", "structured"),
        (b"N\x89U\x10" + b"A" * 16 + b"tb.", "without a dtype"),
    ],
)
def test_crafted_arrays_are_refused(tmp_path, body, said):
    (tmp_path / "x.pkl").write_bytes(START + body)
    with pytest.raises(UserError, match=said):
        load_pickle(tmp_path / "x.pkl")


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02cnumpy\nndarray\nN}U\x0c__setstate__K\x01s\x86b.",  # sets an attribute of the class
        b"\x80\x02cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85R.",  # makes an array of its own
        b"\x80\x02c_codecs\nencode\nU\x01aU\x03hex\x86R.",  # asks for another codec
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(c__builtin__\nset\n(K\x00tU\x01btR.",
        b"\x80\x02" + b"]\x94" * 3 + b"R.",
        b"not a pickle",
    ],
)
def test_other_programs_are_refused(tmp_path, program):
    (tmp_path / "x.pkl").write_bytes(program)
    with pytest.raises(UserError, match="not a whole pickle"):
        load_pickle(tmp_path / "x.pkl")
    (tmp_path / "y.pkl").write_bytes(pickle.dumps(ARRAYS["matrix"]))
    assert np.array_equal(load_pickle(tmp_path / "y.pkl"), ARRAYS["matrix"]), "a refused file leaves no trace"


@pytest.mark.parametrize("left", [0, 4, 60, *range(190, 206), 100_000, -3])
def test_truncated_files_are_named(tmp_path, left):
    formats_a.objects(tmp_path / "a.npy", [np.zeros((300, 300)), 1])
    formats_a.thoughtviz_pkl(tmp_path / "a.pkl", formats_a.thoughtviz_arrays(80, 10))
    formats_a.cvpr40_pth(tmp_path / "a.pth", images=1)
    formats_a.cvpr40_pth(tmp_path / "b.pth", images=1, legacy=True)
    for name, read in (("a.npy", load_npy), ("a.pkl", load_pickle), ("a.pth", load_pth), ("b.pth", load_pth)):
        cut = tmp_path / name
        cut.write_bytes(cut.read_bytes()[:left])
        with pytest.raises(UserError, match=f"{name}: (not a whole|the file is empty)"):
            read(cut)
    with pytest.raises(UserError, match="not a whole|the file is empty"):
        load_npy(tmp_path / "a.npy", skim=True)


def test_damaged_bytes_are_an_error_or_other_data(tmp_path, marker):
    formats_a.objects(tmp_path / "a.npy", [np.arange(6.0).reshape(2, 3), 1, "n01", {"a": np.float32(2)}])
    formats_a.thoughtviz_pkl(tmp_path / "a.pkl", formats_a.thoughtviz_arrays(1, 1))
    torch.save({"dataset": [{"eeg": torch.ones(2, 3), "label": 1}]}, tmp_path / "a.pth")
    torch.save({"dataset": [torch.ones(2)]}, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    rng = np.random.default_rng(0)
    for name, read in (("a.npy", load_npy), ("a.pkl", load_pickle), ("a.pth", load_pth), ("b.pth", load_pth)):
        whole = (tmp_path / name).read_bytes()
        for _ in range(60):
            bytes_ = bytearray(whole)
            for place in rng.integers(0, len(whole), 3):
                bytes_[place] = rng.integers(0, 256)
            (tmp_path / name).write_bytes(bytes_)
            try:
                read(tmp_path / name)
            except UserError as error:
                assert name in str(error)


def test_missing_file_and_folder(tmp_path):
    for read in (load_npy, load_pickle, load_pth):
        with pytest.raises(UserError, match="no such file"):
            read(tmp_path / "nothing")
        with pytest.raises(UserError, match="no such file"):
            read(tmp_path)


def test_memory_is_checked_before_reading(tmp_path, monkeypatch):
    formats_a.cvpr40_pth(tmp_path / "old.pth", legacy=True)
    formats_a.cvpr40_pth(tmp_path / "new.pth")
    formats_a.thoughtviz_pkl(tmp_path / "data.pkl", formats_a.thoughtviz_arrays())
    assert unpickle.available_bytes() > 2**20
    size = (tmp_path / "old.pth").stat().st_size
    assert unpickle.pth_peak(tmp_path / "old.pth") == int(1.1 * size) and unpickle.pth_peak(tmp_path / "new.pth") == 0
    monkeypatch.setattr(unpickle, "available_bytes", lambda: 1)
    with pytest.raises(UserError, match=rf"takes {1.1 * size / 2**30:.2f} GiB of memory, but 0.00 GiB are available"):
        load_pth(tmp_path / "old.pth")
    with pytest.raises(UserError, match="a pickle can only be read whole"):
        load_pickle(tmp_path / "data.pkl")
    assert len(load_pth(tmp_path / "new.pth")["dataset"]) == 20, "a zip is mapped and needs none"


def test_zip_is_mapped_and_old_file_is_equal(tmp_path):
    admitted = set(torch.serialization.get_safe_globals())
    found = formats_a.cvpr40_pth(tmp_path / "old.pth", legacy=True)
    formats_a.cvpr40_pth(tmp_path / "new.pth")
    for name in ("old", "new"):
        read = load_pth(tmp_path / f"{name}.pth")
        assert all(torch.equal(a["eeg"], b["eeg"]) for a, b in zip(read["dataset"], found["dataset"], strict=True))
    torch.save({"eeg": torch.ones(2), "label": np.int64(3), "x": np.arange(3)}, tmp_path / "n.pth")
    read = load_pth(tmp_path / "n.pth")
    assert read["label"] == 3 and read["x"].tolist() == [0, 1, 2], "numpy's scalars and arrays are admitted"
    assert set(torch.serialization.get_safe_globals()) == admitted, "and only while reading"


def test_truncated_plain_npy(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(3))
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-8])
    with pytest.raises(UserError, match="x.npy: not a whole .npy array"):
        load_npy(tmp_path / "x.npy")
