"""Which tasks the words of a launcher mean."""

import pytest

from eeg_gan.config import UserError
from eeg_gan.slurm.grid import label, points, split


@pytest.mark.parametrize(
    "text, values",
    [
        ("a,b,c", ["a", "b", "c"]),
        ("1e-3, 2e-3", ["1e-3", "2e-3"]),
        ("a", ["a"]),
        ("", [""]),
        ("[1,2]", ["[1,2]"]),
        ("[1,2],[3,4]", ["[1,2]", "[3,4]"]),
        ("{a: 1, b: 2}", ["{a: 1, b: 2}"]),
        ("'a,b',c", ["a,b", "c"]),
        ('"a,b"', ["a,b"]),
        ("[1,2", ["[1,2"]),  # the config says what is wrong
    ],
)
def test_commas_outside_of_brackets_and_quotes_separate(text, values):
    assert split(text) == values


def test_a_grid_is_the_product_and_its_folders_do_not_depend_on_its_size():
    common, small = points(["seed=3", "optim.lr=1,2", "batch=8"])
    assert common == ["seed=3", "batch=8"]
    assert [p.words for p in small] == [("optim.lr=1",), ("optim.lr=2",)]
    _, large = points(["optim.lr=1,2,4", "seed=0,1"])
    assert len({p.label for p in large}) == 6 and large[0].words == ("optim.lr=1", "seed=0")
    assert [p.label for p in points(["optim.lr=2,7"])[1]] == ["optim.lr=2", "optim.lr=7"]
    assert points(["seed=3"])[1][0].label == ""


def test_a_list_has_one_task_per_line(tmp_path):
    path = tmp_path / "tasks.txt"
    path.write_text("# learning rate and size together\noptim.lr=1 batch=8\n\noptim.lr=2 'name=a b'  # last\n")
    common, tasks = points(["seed=0"], path)
    assert common == ["seed=0"]
    assert [p.words for p in tasks] == [("optim.lr=1", "batch=8"), ("optim.lr=2", "name=a b")]
    assert len(points(["seed=0,1"], path)[1]) == 4


@pytest.mark.parametrize("content", ["", "# nothing\n", "optim.lr\n", "run_dir=x\n", "a='b\n"])
def test_a_list_that_lists_no_tasks_is_refused(tmp_path, content):
    (tmp_path / "tasks.txt").write_text(content)
    with pytest.raises(UserError, match=r"tasks\.txt"):
        points([], tmp_path / "tasks.txt")


@pytest.mark.parametrize("words, says", [(["a=1,,2"], "empty"), (["run_dir=a,b"], "run_dir"), (["a=1,1"], "twice")])
def test_grids_that_cannot_be_meant_are_refused(words, says):
    with pytest.raises(UserError, match=says):
        points(words)


@pytest.mark.parametrize("value", ["../../etc", "a b", "$(x)", "q'\"", "n\nl", "x" * 400, ".hidden", "--flag", "ü"])
def test_a_folders_name_is_harmless_and_tells_values_apart(value):
    name = label([f"k={value}"])
    assert "/" not in name and name.isprintable() and " " not in name and len(name) <= 140 and name[0] not in ".-"
    assert name != label([f"k={value}!"]) and label([value])[0] not in ".-"
