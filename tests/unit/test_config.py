from dataclasses import dataclass, field
from typing import Literal

import pytest

from eeg_gan.config import UserError, differences, from_dict, keys, load, to_dict


@dataclass(frozen=True)
class Inner:
    lr: float = 1e-3  # peak rate

    def __post_init__(self):
        if self.lr <= 0:
            raise ValueError(f"lr must be positive; got {self.lr}")


@dataclass(frozen=True)
class Outer:
    path: str  # where
    optim: Inner = field(default_factory=Inner)
    kind: Literal["lstm", "cnn"] = "lstm"  # which network
    steps: int = 10  # how many
    sizes: tuple[int, ...] = (1, 2)  # of each layer
    limit: int | None = None  # at most
    flag: bool = False  # switch


def loaded(*words):
    return load(Outer, None, ["path=a", *words])


def test_exponents_are_numbers(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("path: 12\noptim: {lr: 1e-4}\nsteps: 1e3\n")  # PyYAML reads 1e-4 and 1e3 as text
    config = load(Outer, file)
    assert (config.path, config.optim.lr, config.steps) == ("12", 1e-4, 1000)


def test_overrides_reach_every_type():
    config = loaded("optim.lr=2e-3", "kind=cnn", "sizes=[3,4]", "limit=null", "flag=true", "steps=1_000")
    assert config == Outer("a", Inner(2e-3), "cnn", 1000, (3, 4), None, True)
    assert load(Outer, None, ["path=007"]).path == "007"  # text stays as typed


@pytest.mark.parametrize(
    "word, said",
    [
        ("optm.lr=1", "unknown key optm; did you mean optim?"),
        ("optim.rl=1", "unknown key optim.rl; did you mean optim.lr?"),
        ("kind=cnm", "did you mean cnn?"),
        ("optim.lr=fast", "optim.lr"),
        ("optim.lr=-1", "lr must be positive; got -1"),
        ("optim.lr=true", "expected a number, got true"),
        ("steps=1.5", "steps"),
        ("optim=3", "optim is a group of keys, but 3 was given"),
        ("steps", "key=value"),
    ],
)
def test_mistakes_are_one_clear_line(word, said):
    with pytest.raises(UserError) as error:
        loaded(word)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_missing_key_and_missing_file(tmp_path):
    with pytest.raises(UserError, match="path is missing; write it in the file or as path=VALUE"):
        load(Outer, None)
    (tmp_path / "encode.yaml").touch()
    with pytest.raises(UserError, match="did you mean .*encode.yaml"):
        load(Outer, tmp_path / "encoed.yaml")


@pytest.mark.parametrize("text, said", [("a: [", "not valid YAML"), ("- 1", "a config is a mapping")])
def test_files_that_are_no_config(tmp_path, text, said):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        load(Outer, tmp_path / "c.yaml")


def test_resolved_config_comes_back():
    config = loaded("sizes=[5]", "optim.lr=1e-2")
    assert from_dict(Outer, to_dict(config), "x") == config


def test_keys_carry_type_default_and_meaning():
    found = {key.name: key for key in keys(Outer)}
    assert list(found) == ["path", "optim.lr", "kind", "steps", "sizes", "limit", "flag"]
    assert (found["path"].default, found["path"].meaning) == ("required", "where")
    assert (found["kind"].type, found["kind"].default) == ("lstm | cnn", "lstm")
    assert found["limit"].type == "int | null" and found["optim.lr"].meaning == "peak rate"


def test_differences_name_the_keys():
    lines = differences(to_dict(loaded()), to_dict(loaded("optim.lr=1", "steps=3")))
    assert lines == ["optim.lr: 0.001 -> 1.0", "steps: 10 -> 3"]
