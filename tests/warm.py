"""Commands of eeg-gan in forked children of a process that has imported everything: a start costs milliseconds.

The parent never computes, so that it has one thread and may fork. `Warm()` starts it; `start` gives a `Child`.
As a program it reads one JSON request per line, {argv, env, stderr, code}, and answers with the number of the child and
later with its exit code.
"""

import json
import os
import select
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass
class Child:
    pid: int
    stderr: Path
    ended: threading.Event = field(default_factory=threading.Event)
    returncode: int | None = None  # negative: the signal that ended it

    def wait(self, seconds: float = 280) -> int:
        assert self.ended.wait(seconds), f"still running after {seconds} s:\n{self.said}"
        return self.returncode

    def kill(self, number: int) -> None:
        if not self.ended.is_set():
            os.kill(self.pid, number)

    @property
    def said(self) -> str:
        return self.stderr.read_text() if self.stderr.exists() else ""


class Warm:
    """The parent process; use it in a `with`."""

    def __enter__(self) -> "Warm":
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, __file__], text=True, env=env, **pipes)
        self.children: dict[int, Child] = {}
        self._born, self._lock = threading.Semaphore(0), threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait(60)

    def start(self, argv: list[str], stderr: Path, code: str = "", **env: str) -> Child:
        """A command; `code` is Python that runs in the child before it, for hooks at its operations on files."""
        with self._lock:
            request = {"argv": [str(word) for word in argv], "stderr": str(stderr), "code": code, "env": env}
            self._asked = stderr
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            assert self._born.acquire(timeout=280), "the warm process does not answer"
            return self._last

    def run(self, argv: list[str], stderr: Path, code: str = "", **env: str) -> Child:
        child = self.start(argv, stderr, code, **env)
        child.wait()
        return child

    def ranks(self, argv: list[str], folder: Path, codes: dict[int, str] | None = None, **env: str) -> list[Child]:
        """The same command as two processes that meet, each with its own hook."""
        meet = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        return [
            self.start(
                argv,
                folder / f"rank{rank}.txt",
                (codes or {}).get(rank, ""),
                **{**meet, "RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true", **env},
            )
            for rank in range(2)
        ]

    def _listen(self) -> None:
        for line in self.process.stdout:
            answer = json.loads(line)
            if "code" in answer:
                child = self.children[answer["pid"]]
                child.returncode = answer["code"]
                child.ended.set()
            else:
                self._last = self.children[answer["pid"]] = Child(answer["pid"], self._asked)
                self._born.release()


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def serve() -> None:
    """Imports, then forks on request."""
    from eeg_gan import cli
    from eeg_gan.data import loader, stream  # noqa: F401
    from eeg_gan.stages import align, embed, encode, gan, image2eeg  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.set_inheritable(answers.fileno(), False)
    running: set[int] = set()

    def answer(**what: int) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    buffer, open_ = b"", True
    while open_ or running:
        ready, _, _ = select.select([0] if open_ else [], [], [], 0.02)
        if ready:
            read = os.read(0, 1 << 16)
            open_, buffer = bool(read), buffer + read
        while b"\n" in buffer:
            line, buffer = buffer.split(b"\n", 1)
            threads = os.listdir("/proc/self/task")
            assert len(threads) == 1, f"a process of {len(threads)} threads may not fork"
            pid = os.fork()
            if pid == 0:
                answers.close()
                _child(cli, json.loads(line))
            running.add(pid)
            answer(pid=pid)
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.discard(pid)
                answer(pid=pid, code=os.waitstatus_to_exitcode(status))
    answers.close()


def _child(cli, request: dict) -> None:
    """Never returns; leaves as the console script does."""
    target = os.open(request["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.environ.update(request["env"])
    exec(request["code"], {"__name__": "hook"})
    sys.argv[1:] = request["argv"]
    cli.entry()
    os._exit(99)


if __name__ == "__main__":
    serve()
