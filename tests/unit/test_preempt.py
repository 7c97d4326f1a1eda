"""Signals, the time limit, and a launcher's own handlers below ours."""

import os
import signal
import time

import pytest

from eeg_gan import cli
from eeg_gan.config import UserError
from eeg_gan.training import preempt


@pytest.fixture
def launcher():
    """Handlers such as submitit's: one that asks for a requeue and does not come back, one that only speaks."""
    calls = []

    def requeue(number, frame):
        calls.append(("requeue", number))
        raise SystemExit(-1)

    former = {
        signal.SIGUSR2: signal.signal(signal.SIGUSR2, requeue),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, frame: calls.append(("bypass", number))),
    }
    yield calls
    for number, handler in former.items():
        signal.signal(number, handler)


def stopped_by(*signals, nested=False):
    """What leaves a watch after these signals and a save."""
    with pytest.raises(preempt.Stopped) as caught, preempt.watch() as flag:
        for number in () if nested else signals:
            os.kill(os.getpid(), number)
        if nested:
            with preempt.watch() as inner:
                for number in signals:
                    os.kill(os.getpid(), number)
                assert inner.agreed()
                raise preempt.Stopped("saved")
        assert flag.agreed()
        raise preempt.Stopped("saved")
    return caught.value


@pytest.mark.parametrize("nested", [False, True])
def test_the_launchers_handler_is_called_after_the_save_alone(launcher, nested):
    stopped = stopped_by(signal.SIGUSR2, nested=nested)
    assert launcher == [], "not in the signal handler"
    with pytest.raises(SystemExit):
        stopped.hand_over()
    assert launcher == [("requeue", signal.SIGUSR2)]


def test_sigterm_alone_asks_for_no_requeue(launcher):
    stopped_by(signal.SIGTERM).hand_over()
    assert launcher == [("bypass", signal.SIGTERM)]


@pytest.mark.parametrize(
    "signals", [(signal.SIGTERM, signal.SIGUSR2), (signal.SIGUSR2, signal.SIGTERM)], ids=["before", "after"]
)
def test_a_preemption_that_also_terminates_is_requeued(launcher, signals):
    with pytest.raises(SystemExit):
        stopped_by(*signals).hand_over()
    assert launcher == [("requeue", signal.SIGUSR2)]


def test_without_a_launcher_nothing_is_handed_over():
    stopped_by(signal.SIGUSR2).hand_over()


def test_a_stop_that_nobody_asked_for_hands_nothing_over(launcher):
    with pytest.raises(preempt.Stopped) as caught, preempt.watch():
        raise preempt.Stopped("stop_after")
    caught.value.hand_over()
    assert launcher == []


def test_the_command_line_hands_over_when_all_is_said(launcher, monkeypatch, capsys):
    class Module:
        class Config:
            pass

        @staticmethod
        def run(config):
            with preempt.watch():
                os.kill(os.getpid(), signal.SIGUSR2)
                raise preempt.Stopped("saved at 64 images")

    monkeypatch.setattr(cli, "stage", lambda verb: Module)
    monkeypatch.setattr(cli, "load", lambda *_: None)
    with pytest.raises(SystemExit):
        cli.main(["encode", "some.yaml"])
    assert launcher == [("requeue", signal.SIGUSR2)] and "saved at 64 images" in capsys.readouterr().err


def test_the_time_limit_raises_the_flag_before_it_is_over(monkeypatch):
    monkeypatch.setenv("EEG_GAN_TIME_LIMIT_S", "1000")
    with preempt.watch() as flag:
        assert not flag.agreed()
        flag.deadline = time.monotonic() + 100  # as if 900 s had passed
        flag._longest = 90
        assert not flag.agreed()
        flag._longest = 110
        assert flag.agreed() and flag.signal == signal.SIGUSR2


def test_the_time_limit_asks_the_launcher_for_a_requeue(launcher, monkeypatch):
    monkeypatch.setenv("EEG_GAN_TIME_LIMIT_S", "0")
    stopped = stopped_by()
    with pytest.raises(SystemExit):
        stopped.hand_over()


def test_slurms_end_of_the_job_counts_unless_it_has_passed(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 30))
    stopped_by()
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() - 30))
    with preempt.watch() as flag:
        assert not flag.agreed()


def test_a_time_limit_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setenv("EEG_GAN_TIME_LIMIT_S", "1h")
    with pytest.raises(UserError, match="EEG_GAN_TIME_LIMIT_S='1h'"), preempt.watch():
        pass
