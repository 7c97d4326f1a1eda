"""The frame of every stage: its run directory, its processes, its record, and leaving when asked."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from eeg_gan import __version__
from eeg_gan.config import UserError, differences, read_yaml, to_dict
from eeg_gan.distributed import any_rank, barrier, is_main, rank, world_size
from eeg_gan.ops import library
from eeg_gan.training import engine, heap, watchdog, world, zero
from eeg_gan.training.checkpoint import file_digest, write_json
from eeg_gan.training.log import Bar, Log
from eeg_gan.training.meter import Meter
from eeg_gan.training.preempt import Flag, Stopped, watch

# Keys that may change when a run goes on: where it ends, when it is looked at, how data are fetched, and whether a GPU
# repeats its bits.
MAY_CHANGE = ("run_dir", "total_images", "stop_after", "loader.cache_mb", "loader.verify", "checkpoint_every")
MAY_CHANGE += (
    "engine.deepspeed",
    "engine.check_every",
    "engine.bucket_mb",
    "engine.overlap",
    "micro_batch",
    "workers",
    "seeds",
    "keep_checkpoints",
    "deterministic",
    "loader.stream.url",
    "loader.stream.retries",
    "loader.stream.retry_s",
    "loader.stream.timeout_s",
)
log = logging.getLogger("eeg_gan")


class Runtime:
    """What a stage holds while it runs: `run_dir`, `device`, `accelerator`, `log`, and the wish to stop."""

    def __init__(self, verb: str, config: Any, run_dir: Path, accelerator: Accelerator, flag: Flag):
        self.verb, self.config, self.run_dir, self.accelerator, self.flag = verb, config, run_dir, accelerator, flag
        self.device = accelerator.device
        self.main = is_main()
        self.log, self.meter = Log(run_dir, active=False), Meter(self.device)
        self.record = _read_json(run_dir / "run.json")
        self.began, self._saved_s = time.monotonic(), self.record.get("seconds", 0.0)
        self._processes_before = self.record.get("processes")
        self._changed = [path for path, digest in self.record.get("files", {}).items() if _digest(path) != digest]

    @property
    def done(self) -> bool:
        """The stage was finished earlier with this very config, and the files it was made from are the same.

        A larger `total_images` makes it unfinished.
        """
        return self.record.get("done") == to_dict(self.config) and not self._changed

    def inputs(self, files: Sequence[str | Path] = (), **digests: str | None) -> None:
        """Records what the run was made from; a run directory made from other inputs is refused.

        `files` are small descriptions (an index, a features.json, a state.json), pictures, or a folder of them, whose
        names count, that a later start compares.
        """
        self.record["files"] = {str(path): _digest(path) for path in files}
        before = self.record.get("inputs")
        if before is not None and before != digests:
            raise UserError(
                f"{self.run_dir} was made from other inputs ({'; '.join(differences(before, digests))}); "
                "delete it to start anew, or choose another run_dir"
            )
        self.record["inputs"] = digests
        self.save_record()

    def reads(self, splits: tuple[str, ...]) -> None:
        """Counts each opening of a split in the run record."""
        counts = self.record.setdefault("reads", {})
        for split in splits:
            counts[split] = counts.get(split, 0) + 1
        self.save_record()

    def confounded(self, confounded: bool) -> None:
        """Where the division of the data is confounded, the word goes into the record, TensorBoard and the headline."""
        if confounded:
            self.record["confounded"] = True
            self.log.text("confounded", "made from a confounded split: scores may come from drift or repeated stimuli")

    def start_log(self, images: int = 0) -> None:
        """TensorBoard from `images` on, with the resolved config as text; and a line where plain PyTorch serves."""
        if self.main and images and self._processes_before not in (None, world_size()):
            log.warning(
                "%s: begun by %s, going on with %d processes: the same stream of data and the same schedule, but last "
                "digits will differ from an unbroken run, for sums over processes round otherwise",
                self.name,
                self._processes_before,
                world_size(),
            )
        if self.main and (reason := library.why_not(self.device.type)):
            log.info("plain PyTorch serves for the operators: %s (`eeg-gan doctor` has the cure)", reason)
        self.log, self.meter = Log(self.run_dir, self.main, images), Meter(self.device, images)
        config = to_dict(self.config)
        self.log.text("config", f"```yaml\n{yaml.safe_dump(config, sort_keys=False)}\n```", images)
        self.log.start(config)

    def bar(self, total: int, start: int = 0, label: str | None = None) -> Bar:
        return Bar(label or self.verb, total, start, self.main)

    def must_stop(self, images: int) -> bool:
        """True on all ranks after a signal, or once `stop_after` images are reached."""
        watchdog.got_on()
        self.meter.stepped(images)
        limit = getattr(self.config, "stop_after", None)
        return self.flag.agreed() or (limit is not None and images >= limit)

    def leave(self, images: int) -> None:
        """Leaves after a save, with exit code 75."""
        raise Stopped(f"{self.verb}: saved at {images} images in {self.run_dir}; the same command goes on from there")

    def check_stop(self) -> None:
        """For stages without checkpoints: leave now if asked; what is half done is made again. All ranks call this."""
        watchdog.got_on()
        if self.flag.agreed():
            self._leave_undone()

    def check_stop_here(self) -> None:
        """The same inside `on_main`, where the other ranks wait and cannot agree."""
        watchdog.got_on()
        if self.flag.signal is not None:
            self._leave_undone()

    def _leave_undone(self) -> None:
        raise Stopped(f"{self.verb}: stopped; the same command starts this stage again")

    def on_main(self, work: Callable[[], None]) -> None:
        """Runs `work` on rank 0 while the others wait; when it fails or is asked to stop, all ranks leave."""
        error: BaseException | None = None
        if self.main:
            try:
                work()
            except BaseException as raised:  # told to the other ranks first, then raised again
                error = raised
        if any_rank(error is not None):
            raise error or Stopped(f"{self.verb}: rank 0 left")

    def finish(self, headline: str, metrics: Mapping[str, float] | None = None, images: int = 0) -> None:
        """Marks the stage as done with its config and says its headline figure.

        `metrics` are its final figures, with which run.json and TensorBoard compare runs.
        """
        if self.record.get("confounded") and "confounded" not in headline:
            headline += "; confounded"
        self.record["done"] = to_dict(self.config)
        self.record["headline"] = headline
        if metrics is not None:
            self.record["metrics"] = {name: float(value) for name, value in metrics.items()}
            self.log.finish(images, self.record["metrics"])
        self.save_record()
        if self.main:
            log.info("%-12s %s  (%.0f s)", self.name, headline, self.seconds)
        barrier()

    @property
    def name(self) -> str:
        return self.run_dir.name

    @property
    def seconds(self) -> float:
        """The work of all starts together."""
        return self._saved_s + time.monotonic() - self.began

    def save_record(self) -> None:
        """Writes run.json: what ran, on what, for how long, and which splits were read."""
        watchdog.got_on()
        self.record["seconds"] = self.seconds
        if self.main:
            write_json(self.run_dir / "run.json", self.record)


def crossed(images: int, batch: int, every: int) -> bool:
    """True when the last batch passed a multiple of `every`."""
    return images // every > (images - batch) // every


@contextlib.contextmanager
def start(verb: str, config: Any) -> Iterator[Runtime]:
    """Claims the run directory and sets up processes and signals; `config` has `run_dir`."""
    run_dir = Path(config.run_dir)
    accelerator = engine.accelerator(config)
    if accelerator.device.type == "cpu":
        heap.keep_freed()
    with watchdog.over(verb), _memory(config):
        world.check(accelerator.num_processes)
        make_folder(run_dir)
        with watch() as flag, _lock(run_dir):
            before = set(os.listdir(run_dir))
            claim(run_dir, verb, config)
            runtime = Runtime(verb, config, run_dir, accelerator, flag)
            runtime.record.update(
                verb=verb, version=__version__, torch=torch.__version__, host=platform.machine(), processes=world_size()
            )
            runtime.record["engine"] = zero.asked(config) or "accelerate"
            if runtime.done:
                log.info("%-12s done: %s", runtime.name, runtime.record.get("headline", ""))
            refused = False
            try:
                yield runtime
            except UserError:
                runtime.log.close()
                opened = "test" in runtime.record.get("reads", {})  # which stays counted
                refused = not opened and unclaim(run_dir, before)
                raise
            finally:
                runtime.log.close()
                if not runtime.done and not refused:
                    runtime.save_record()


@contextlib.contextmanager
def _memory(config: Any) -> Iterator[None]:
    """Memory that does not suffice is the user's to mend, by a key that the config knows best."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError, its CPU's has no class
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        cure = "take a machine with more memory, or lower batch where there is such a key"
        if hasattr(config, "with_less_memory"):
            cure = config.with_less_memory(world_size())
        elif hasattr(config, "engine"):
            cure = "start more processes, among which the batch is divided; or lower it, which trains something else"
        fact = (str(error).splitlines() or ["there is not enough memory"])[0].rstrip(".")
        raise UserError(f"{fact}. Cure: {cure}; the same command goes on") from None


def make_folder(run_dir: Path) -> None:
    """Makes the run directory, with a clear line where that cannot be."""
    with _writing(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)


def claim(run_dir: Path, verb: str, config: Any) -> None:
    """Writes the resolved config into the run directory; refuses one that holds another config."""
    resolved = {"verb": verb, **to_dict(config)}
    path = run_dir / "config.yaml"
    if path.exists():
        _refuse_other(run_dir, read_yaml(path), resolved)
    barrier()
    if is_main():
        with _writing(run_dir):
            partial = path.with_name("config.yaml.partial")
            partial.write_text(yaml.safe_dump(resolved, sort_keys=False, width=120))
            os.replace(partial, path)


def unclaim(run_dir: Path, before: set[str]) -> bool:
    """Frees the directory of a command that was refused before it made anything, so that a corrected one may use it.

    What was there `before` it stays; a TensorBoard file without figures is nothing.
    """
    made = set(os.listdir(run_dir)) - before - {".lock"}
    if "config.yaml" in before or any(not name.startswith(("config.yaml", "run.json", "events.out.")) for name in made):
        return False
    if is_main():
        for name in made:
            (run_dir / name).unlink(missing_ok=True)
    return True


@contextlib.contextmanager
def _writing(run_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"run_dir={run_dir} cannot be written: {error.strerror or error}"
            + (f" ({error.filename})" if error.filename and error.filename != str(run_dir) else "")
            + "; choose a run_dir on a disk where you may write"
        ) from None


def _may_change(key: str) -> bool:
    """Also below a pipeline's `stages.NAME.`."""
    return any(key == name or key.endswith(f".{name}") for name in MAY_CHANGE)


def _refuse_other(run_dir: Path, old: dict, new: dict) -> None:
    if old.get("verb", new["verb"]) != new["verb"]:
        raise UserError(f"{run_dir} holds a run of {old['verb']}, not of {new['verb']}; choose another run_dir")
    lines = [line for line in differences(old, new) if not _may_change(line.split(":")[0])]
    if lines:
        raise UserError(
            f"{run_dir} holds a run of another config: {'; '.join(lines)}. "
            "Choose another run_dir, or delete that folder to start anew"
        )


@contextlib.contextmanager
def _lock(run_dir: Path) -> Iterator[None]:
    """Two commands must not write into one run directory; the lock goes with the process, however it ends."""
    if rank() != 0:
        yield
        return
    with _writing(run_dir):
        file = open(run_dir / ".lock", "w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{run_dir} is in use by another command; wait for it, or choose another run_dir") from None
        except OSError:
            log.warning("%s: this file system has no locks; do not start the same run twice", run_dir)
        yield


def _digest(path: str | Path) -> str | None:
    """Of a file's bytes, or of the names in a folder."""
    if os.path.isdir(path):
        names = sorted(str(found.relative_to(path)) for found in Path(path).rglob("*"))
        return hashlib.sha256("\n".join(names).encode()).hexdigest()
    return file_digest(Path(path)) if os.path.isfile(path) else None


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged ({error}); delete it, the run itself is not lost") from None
