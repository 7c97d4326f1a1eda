import numpy as np
import pytest
import yaml
from PIL import Image

from eeg_gan.config import UserError
from eeg_gan.data.shards import LONGEST_KEY
from eeg_gan.data.sources.folder import Folder

CARD = {"name": "own", "sfreq": 100, "ch_names": ["Oz", "Pz"], "design": "event-randomised", "licence": "CC0"}
HEADER = ["eeg", "image", "label", "subject", "onset"]
ROWS = [["a.npy", "red.png", "cat", "s1", "1.5"], ["b.npy", "blue.jpg", "dog", "s1", "3"]]


@pytest.fixture
def folder(tmp_path):
    for name, value in (("a", 1.0), ("b", 2.0)):
        np.save(tmp_path / f"{name}.npy", np.full((2, 8), value))
    Image.new("RGB", (4, 3), "red").save(tmp_path / "red.png")
    Image.new("RGB", (5, 5), "blue").save(tmp_path / "blue.jpg")
    write_card(tmp_path, CARD)
    write_rows(tmp_path, HEADER, ROWS)
    return tmp_path


def write_card(folder, values):
    (folder / "dataset.yaml").write_text(yaml.safe_dump(values))


def write_rows(folder, header, rows):
    (folder / "trials.csv").write_text("\n".join(",".join(map(str, row)) for row in [header, *rows]) + "\n")


def change(folder, row, **cells):
    rows = [list(values) for values in ROWS]
    for name, text in cells.items():
        rows[row][HEADER.index(name)] = text
    write_rows(folder, HEADER, rows)


def refused(folder, *said):
    with pytest.raises(UserError) as error:
        source = Folder(folder)
        for i in range(len(source.trials)):
            source.eeg(i), source.image(i)
    for text in said:
        assert text in str(error.value)


def one_file(folder, array, header=("label", "subject"), rows=(("cat", "s1"), ("dog", "s1"))):
    np.save(folder / "eeg.npy", array)
    write_rows(folder, header, rows)


def test_file_per_trial(folder):
    source = Folder(folder)
    assert source.card.class_names == ("cat", "dog") and source.card.pairing == "trial"
    assert [t["label"] for t in source.trials] == [0, 1] and [t["key"] for t in source.trials] == ["a", "b"]
    assert source.trials[0]["stimulus"] == "red.png" and source.trials[0]["run"] is None
    assert source.trials[1]["onset_s"] == 3
    assert source.eeg(1).dtype == np.float32 and source.eeg(1).shape == (2, 8) and (source.eeg(1) == 2).all()
    assert source.image(0).shape == (3, 4, 3) and source.image(0)[0, 0].tolist() == [255, 0, 0]
    assert source.image(1).shape == (5, 5, 3)


def test_one_file_with_index(folder):
    one_file(
        folder,
        np.arange(3.0)[:, None, None] * np.ones((3, 2, 8)),
        ("index", "label", "subject"),
        [(2, "cat", "s1"), (0, "dog", "s1")],
    )
    source = Folder(folder)
    assert source.eeg(0)[0, 0] == 2 and source.eeg(1)[0, 0] == 0 and source.image(0) is None
    assert source.card.pairing == "none"


def test_one_file_in_order_of_rows_and_integer_labels(folder):
    write_card(folder, CARD | {"class_names": ["cat", "dog"]})
    one_file(folder, np.ones((2, 2, 8)), rows=[(1, "s1"), (0, "s1")])
    assert [t["class_name"] for t in Folder(folder).trials] == ["dog", "cat"]


def test_semicolons_and_byte_order_mark(folder):
    text = (folder / "trials.csv").read_text().replace(",", ";")
    (folder / "trials.csv").write_text(text, encoding="utf-8-sig")
    assert len(Folder(folder).trials) == 2


def test_no_path():
    refused(None, "source.path is missing")


def test_missing_folder(tmp_path):
    refused(tmp_path / "nowhere", "nowhere", "no such folder")


def test_missing_card(folder):
    (folder / "dataset.yaml").unlink()
    refused(folder, "dataset.yaml", "no such")


def test_missing_table(folder):
    (folder / "trials.csv").unlink()
    refused(folder, "trials.csv", "no such file")


@pytest.mark.parametrize("text", ["", "\n", "label,subject\n", "label,subject\n\n"])
def test_empty_table(folder, text):
    (folder / "trials.csv").write_text(text)
    refused(folder, "trials.csv", "empty")


def test_missing_column(folder):
    write_rows(folder, ["eeg", "label"], [["a.npy", "cat"]])
    refused(folder, "row 1", "column subject is missing")


def test_unknown_column(folder):
    write_rows(folder, ["eeg", "label", "subject", "sesion"], [["a.npy", "cat", "s1", "1"]])
    refused(folder, "row 1", "'sesion'", "did you mean session?")


def test_row_numbers_count_blank_lines(folder):
    (folder / "trials.csv").write_text("eeg,label,subject\n\na.npy,cat,s1\nb.npy,dog\n")
    refused(folder, "row 4", "2 cells")


def test_empty_cell(folder):
    change(folder, 1, subject="")
    refused(folder, "row 3", "column subject is empty")


def test_missing_eeg_file(folder):
    change(folder, 1, eeg="c.npy")
    refused(folder, "row 3", "c.npy", "does not exist")


def test_missing_one_file(folder):
    write_rows(folder, ["label", "subject"], [["cat", "s1"]])
    refused(folder, "eeg.npy", "no such file")


def test_wrong_channels(folder):
    np.save(folder / "b.npy", np.ones((8, 2)))
    refused(folder, "row 3", "b.npy", "[8, 2]", "2 channels")


def test_wrong_length(folder):
    np.save(folder / "b.npy", np.ones((2, 9)))
    refused(folder, "row 3", "9 samples", "8")


def test_wrong_dimensions_of_one_file(folder):
    one_file(folder, np.ones((2, 16)))
    refused(folder, "eeg.npy", "[2, 16]", "[trials, channels, samples]")


def test_wrong_number_of_rows(folder):
    one_file(folder, np.ones((3, 2, 8)))
    refused(folder, "3 trials", "2 rows")


def test_index_out_of_range(folder):
    one_file(folder, np.ones((2, 2, 8)), ("index", "label", "subject"), [(0, "cat", "s1"), (2, "dog", "s1")])
    refused(folder, "row 3", "index '2'", "0 to 1")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite(folder, bad):
    array = np.ones((2, 8))
    array[1, 3] = bad
    np.save(folder / "b.npy", array)
    refused(folder, "row 3", "b.npy", "channel Pz, sample 3")


def test_duplicate_eeg_file(folder):
    change(folder, 1, eeg="./a.npy")
    refused(folder, "row 3", "duplicate", "already in row 2")


def test_duplicate_index(folder):
    one_file(folder, np.ones((2, 2, 8)), ("index", "label", "subject"), [(1, "cat", "s1"), (1, "dog", "s1")])
    refused(folder, "row 3", "duplicate", "index 1", "row 2")


def test_duplicate_key(folder):
    write_rows(folder, ["key", "eeg", "label", "subject"], [["k", "a.npy", "cat", "s1"], ["k", "b.npy", "dog", "s1"]])
    refused(folder, "row 3", "key k", "row 2")


def test_integer_label_without_names(folder):
    change(folder, 0, label="7")
    refused(folder, "row 2", "label 7 has no name", "class_names")


@pytest.mark.parametrize("label", ["dgo", "2", "-1"])
def test_label_without_name(folder, label):
    write_card(folder, CARD | {"class_names": ["cat", "dog"]})
    change(folder, 1, label=label)
    refused(folder, "row 3", repr(label), "has no name")


def test_mixed_rates(folder):
    write_rows(folder, ["eeg", "label", "subject", "sfreq"], [["a.npy", "cat", "s", 100], ["b.npy", "dog", "s", 250]])
    refused(folder, "row 3", "250", "100 Hz")


def test_not_a_number(folder):
    change(folder, 0, onset="soon")
    refused(folder, "row 2", "onset", "'soon'", "not a number")


def test_missing_image(folder):
    change(folder, 0, image="green.png")
    refused(folder, "row 2", "green.png", "does not exist")


def test_unreadable_image(folder):
    (folder / "red.png").write_bytes((folder / "red.png").read_bytes()[:40])
    refused(folder, "row 2", "red.png", "cannot be read")


def test_integers_are_not_microvolt(folder):
    np.save(folder / "a.npy", np.ones((2, 8), dtype=np.int16))
    refused(folder, "row 2", "int16", "float")


def test_object_array_is_never_unpickled(folder):
    np.save(folder / "a.npy", np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    refused(folder, "row 2", "a.npy", "not a plain .npy")


def test_card_mistake_names_the_key(folder):
    write_card(folder, CARD | {"licens": "x"})
    refused(folder, "dataset.yaml", "licens", "did you mean licence?")


def test_names_that_differ_by_a_sign_have_keys_of_their_own(folder):
    for name in ("s+1", "s 1"):
        np.save(folder / f"{name}.npy", np.ones((2, 8)))
    write_rows(folder, HEADER, [["s+1.npy", *ROWS[0][1:]], ["s 1.npy", *ROWS[1][1:]], ["a.npy", *ROWS[0][1:]]])
    keys = [trial["key"] for trial in Folder(folder).trials]
    assert len(set(keys)) == 3 and keys[2] == "a" and all(key.startswith("s_1-") for key in keys[:2])
    write_rows(folder, HEADER, [["s+1.npy", *ROWS[0][1:]], ["a.npy", *ROWS[1][1:]]])
    assert [trial["key"] for trial in Folder(folder).trials] == ["s_1", "a"]


def test_keys_fit_into_shards(folder):
    names = [f"{'a' * 60}/{'b' * 60}{end}.npy" for end in (1, 2)]
    (folder / ("a" * 60)).mkdir()
    for name in names:
        np.save(folder / name, np.ones((2, 8)))
    write_rows(folder, HEADER, [[name, *row[1:]] for name, row in zip(names, ROWS, strict=True)])
    keys = [trial["key"] for trial in Folder(folder).trials]
    assert len(set(keys)) == 2 and all(len(key) == LONGEST_KEY and key.startswith("a" * 60 + "_b") for key in keys)
    assert keys == [trial["key"] for trial in Folder(folder).trials]
    write_rows(folder, ["key", *HEADER], [["k" * 91, *ROWS[0]], ["k", *ROWS[1]]])
    refused(folder, "row 2", "has 91 letters", "shorten it")
