"""Data small enough to know the answer, made once per session; every test enters by the front door."""

import shutil
from pathlib import Path

import pytest
from warm import Warm

from eeg_gan import cli

ROOT = Path(__file__).parents[1]


def debug(verb: str) -> str:
    return str(ROOT / "configs" / verb / "debug.yaml")


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """A folder with every stage of the debug configs done: prepare, audit, encode, align, embed, gan, ..."""
    folder = tmp_path_factory.mktemp("runs")
    for verb, words in commands(folder).items():
        assert cli.main([verb, debug(verb), f"run_dir={folder}/{verb}", *words]) == 0, f"{verb} failed"
    return folder


def commands(folder: Path) -> dict[str, list[str]]:
    """The words after each debug config that chain the stages in `folder`."""
    index = f"loader.index={folder}/prepare/index.json"
    return {
        "prepare": [],
        "audit": [index],
        "encode": [index],
        "align": [index, f"encoder={folder}/encode"],
        "embed": [index, f"encoder={folder}/align"],
        "image2eeg": [index, f"features={folder}/embed"],
        "gan": [index, f"features={folder}/embed"],
        "generate": [f"gan={folder}/gan", f"features={folder}/embed"],
        "evaluate": [
            index,
            f"features={folder}/embed",
            f"align={folder}/align",
            f"aligned_features={folder}/embed",
            f"generated={folder}/generate",
        ],
        "report": [f"pipeline={folder}"],
    }


@pytest.fixture
def shards(runs, tmp_path) -> Path:
    """A copy of the debug shards that a test may damage; the path of its index.json."""
    shutil.copytree(runs / "prepare", tmp_path / "prepare")
    return tmp_path / "prepare" / "index.json"


@pytest.fixture(scope="session")
def warm():
    """Commands in children of a process that has imported everything."""
    with Warm() as started:
        yield started
