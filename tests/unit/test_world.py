import socket
from datetime import timedelta

import pytest
import torch

from eeg_gan.config import UserError
from eeg_gan.slurm import job
from eeg_gan.training import world


def test_a_port_of_another_program_is_named(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(UserError, match=f"meet at 127.0.0.1:{port}, but another program has that port"):
            with world.joining(timedelta(seconds=5)):
                torch.distributed.TCPStore("127.0.0.1", port, 2, True, timedelta(seconds=5))


def test_ranks_that_never_come_are_missed(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="the 2 processes that the launcher asked for did not come together"):
        with world.joining(timedelta(seconds=1)):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            torch.distributed.TCPStore("127.0.0.1", port, 2, True, timedelta(seconds=1))


def test_jobs_and_restarts_meet_at_ports_of_their_own(monkeypatch):
    seen = set()
    for number in range(100):
        for restart in (None, "1", "2"):
            monkeypatch.setenv("SLURM_JOB_ID", str(8_123_456 + number))
            monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
            if restart:
                monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
            seen.add(job.meeting_port())
    assert len(seen) == 300 and min(seen) >= 1024 and max(seen) < 32768
