"""Bytes in sequence from paths, `pipe:` commands and URLs; a side that falls silent is an error after a known time."""

import atexit
import http.client
import os
import select
import shlex
import signal
import subprocess
import urllib.error
import urllib.request
from typing import Any, Protocol


class ShardError(Exception):
    """A shard that cannot be read to its end."""


class Bytes(Protocol):
    """What can be read in sequence, as a context manager."""

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer at the end alone."""

    def __enter__(self) -> "Bytes": ...

    def __exit__(self, *_: object) -> None: ...


def open_url(url: str, timeout_s: float) -> Bytes:
    """http(s) by Python, s3 by the aws command, everything else as webdataset opens it; raises ShardError."""
    import webdataset

    if url.startswith(("http://", "https://")):
        return Answer(url, timeout_s)
    if url.startswith("s3://"):
        url = f"pipe:aws s3 cp --only-show-errors {shlex.quote(url)} -"
    if url.startswith("pipe:"):
        command = subprocess.Popen(url[5:], shell=True, stdout=subprocess.PIPE, bufsize=0, start_new_session=True)
        return Command(command, timeout_s, group=True)
    try:
        found = webdataset.gopen(url)
    except FileNotFoundError:
        raise ShardError("this shard is missing") from None
    return Command(found.proc, timeout_s, group=False) if hasattr(found, "proc") else found


class Command:
    """The output of a process, which is ended with the reading; `group`: with all processes that it started."""

    running = set["Command"]()  # in this process, which ends them with itself

    def __init__(self, process: subprocess.Popen, timeout_s: float, group: bool):
        if not self.running:
            atexit.register(end_commands)
        self.running.add(self)
        self.process, self.timeout_s, self.group = process, timeout_s, group
        self.fd = process.stdout.fileno()
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)

    def read(self, size: int) -> bytes:
        whole, got = bytearray(size), 0
        while got < size:
            if not self._poll.poll(1000 * self.timeout_s):
                raise ShardError(f"the command gave nothing for {self.timeout_s:g} s (loader.stream.timeout_s)")
            n = os.readv(self.fd, [memoryview(whole)[got:]])
            if not n:
                self._check_status()
                break
            got += n
        return bytes(memoryview(whole)[:got])

    def _check_status(self) -> None:
        try:
            status = self.process.wait(self.timeout_s)
        except subprocess.TimeoutExpired:
            raise ShardError(f"the command closed its output, but did not end within {self.timeout_s:g} s") from None
        if status:
            raise ShardError(f"the command ended with status {status}")

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self.process.stdout.close()
        self.process.wait()

    def end(self) -> None:
        self.running.discard(self)
        try:
            if self.group:  # also where the shell has ended, but what it started has not
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        except ProcessLookupError:
            pass


def end_commands() -> None:
    """Ends all that `open_url` started in this process and that still run."""
    for command in list(Command.running):
        command.end()


class Answer:
    """What an HTTP server sends; its end is an error where fewer bytes came than were announced."""

    def __init__(self, url: str, timeout_s: float):
        self.timeout_s = timeout_s
        self.answer = self._waiting(urllib.request.urlopen, url, timeout=timeout_s)
        self.missing = int(self.answer.headers.get("Content-Length") or 0)

    def read(self, size: int) -> bytes:
        part = self._waiting(self.answer.read, size)
        self.missing -= len(part)
        if len(part) < size and self.missing > 0:
            raise ShardError(f"the connection ended {self.missing} bytes before the end")
        return part

    def _waiting(self, call: Any, *words: Any, **keys: Any) -> Any:
        try:
            return call(*words, **keys)
        except urllib.error.HTTPError as error:
            raise ShardError(f"the server says {error.code} {error.reason}") from None
        except TimeoutError:
            raise self._silent() from None
        except urllib.error.URLError as error:
            found = self._silent() if isinstance(error.reason, TimeoutError) else f"no connection ({error.reason})"
            raise ShardError(str(found)) from None
        except http.client.HTTPException as error:
            raise ShardError(f"the connection broke ({error!r})") from None

    def _silent(self) -> ShardError:
        return ShardError(f"the server sent nothing for {self.timeout_s:g} s (loader.stream.timeout_s)")

    def __enter__(self) -> "Answer":
        return self

    def __exit__(self, *_: object) -> None:
        self.answer.close()
