"""Work in other processes: done, failed, asked to stop, and left."""

import time
from pathlib import Path

import pytest

from eeg_gan.config import UserError
from eeg_gan.stages.beside import Beside
from eeg_gan.training.preempt import Stopped, watch


def write(path):
    Path(path).write_text("done")


def fail(said):
    raise UserError(said)


def wait(path):
    """Until it is asked to stop, as a stage does; says that it has begun and that it left well."""
    with watch() as flag:
        write(path)
        for _ in range(1200):
            if flag.signal is not None:
                write(f"{path}.left")
                raise Stopped("saved")
            time.sleep(0.1)


def until(path):
    for _ in range(1200):
        if Path(path).exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} was never written")


def test_all_is_done_in_order_and_a_failure_stops_the_others(tmp_path, capfd):
    ok, slow = tmp_path / "ok", tmp_path / "slow"
    with Beside([[(write, ok), (until, ok)]], "two") as side:
        side.join()
    assert ok.read_text() == "done"
    with (
        pytest.raises(UserError, match="two failed"),
        Beside([[(wait, slow)], [(until, slow), (fail, "no")]], "two") as s,
    ):
        s.join()
    assert "eeg-gan: no" in capfd.readouterr().err
    assert Path(f"{slow}.left").exists()


def test_who_is_asked_or_left_stops_with_a_save(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    with pytest.raises(Stopped), Beside([[(wait, a)]], "one") as side:
        until(a)
        side.join(asked=lambda: True)
    with pytest.raises(ZeroDivisionError), Beside([[(wait, b)]], "one"):
        until(b)
        raise ZeroDivisionError
    assert Path(f"{a}.left").exists() and Path(f"{b}.left").exists()
