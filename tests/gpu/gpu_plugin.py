"""For the GPU tests: exact arithmetic in the twins, and a record that survives a run cut short."""

import json
import os

import pytest
import torch


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """cuDNN's convolutions round float32 to 10 bits unless told not to; the twins are made of them."""
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def pytest_runtest_logreport(report):
    """One line of JSON per test into the file that EEG_GAN_RESULTS names, as soon as it has ended."""
    path = os.environ.get("EEG_GAN_RESULTS")
    if path and (report.when == "call" or report.outcome != "passed"):
        _write(path, report)


def pytest_collectreport(report):
    """A module that skips itself, or cannot be imported, is told too."""
    path = os.environ.get("EEG_GAN_RESULTS")
    if path and report.outcome != "passed":
        _write(path, report)


def _write(path: str, report) -> None:
    line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(getattr(report, "duration", 0.0), 3)}
    if report.outcome == "skipped":
        line["message"] = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    elif report.outcome == "failed":
        line["message"] = str(report.longrepr)[-2000:]
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")
