"""What a run tells of itself: TensorBoard, stats.jsonl, a progress bar. Only the main process writes."""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from eeg_gan.training import events
from eeg_gan.training.watchdog import got_on

log = logging.getLogger("eeg_gan")


class Log:
    """Scalars, pictures and text of one run, counted in images, as one stream over all its starts.

    What was logged beyond the checkpoint from which a start goes on is taken away, and nothing is written twice. Rows
    are handed to the system at once: they are there when the checkpoint of the same count is.
    """

    def __init__(self, run_dir: Path, active: bool, images: int = 0):
        self.run_dir, self.path, self.writer = run_dir, run_dir / "stats.jsonl", None
        if active:
            self._open(images)

    def _open(self, images: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        events.let_thread_end_silently()
        _drop_after(self.path, images)
        self.kept = events.cut_after(self.run_dir, images)
        # the mark tells a TensorBoard that has been looking all along to forget what was taken away
        self.writer = SummaryWriter(str(self.run_dir), purge_step=images + 1 if images else None)

    def back_to(self, images: int) -> None:
        """Goes on from an earlier count within one start."""
        if self.writer is not None:
            self.writer.close()
            self._open(images)

    def scalars(self, images: int, values: Mapping[str, float]) -> None:
        """`values` maps a tag with its unit, such as `loss/triplet` or `speed (images per s)`, to a number."""
        if self.writer is None:
            return
        self._scalars(images, values)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"images": images, **{tag: float(value) for tag, value in values.items()}}) + "\n")

    def _scalars(self, images: int, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            if (tag, images) not in self.kept:
                self.writer.add_scalar(tag, float(value), images)
        self.writer.flush()

    def pictures(self, images: int, tag: str, grid: Tensor) -> None:
        """`grid` uint8 [3, H, W]."""
        if self.writer is not None:
            self.writer.add_image(tag, grid, images)
            self.writer.flush()

    def text(self, tag: str, text: str, images: int = 0) -> None:
        """Once, and again only where it has become another one."""
        if self.writer is None:
            return
        before = [value for (name, _), value in self.kept.items() if name == f"{tag}/text_summary"]
        if not before or events.text_of(before[-1]) != text:
            self.writer.add_text(tag, text, images)
            self.writer.flush()

    def start(self, config: Mapping[str, Any]) -> None:
        """The settings of this run, for TensorBoard's page that compares runs by them."""
        if self.writer is not None and not any("session_start_info" in tag for tag, _ in self.kept):
            self.writer.file_writer.add_summary(events.session(config)[0], 0)

    def finish(self, images: int, metrics: Mapping[str, float]) -> None:
        """The final figures on the same page; a run that is made longer has them again at its new end."""
        if self.writer is None or any("session_end_info" in tag and step == images for tag, step in self.kept):
            return
        self._scalars(images, {f"final/{name}": value for name, value in metrics.items()})
        self.writer.file_writer.add_summary(events.session({})[1], images)
        self.writer.flush()

    def embedding(
        self, features: Tensor, header: Sequence[str], rows: Sequence[Sequence[str]], pictures: Tensor | None
    ) -> None:
        """Features [N, D] on the projector's page, with texts and pictures uint8 [N, 3, H, W] of each."""
        if self.writer is not None:
            events.write_embedding(self.writer, features, header, rows, pictures)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def read_stats(run_dir: str | Path) -> list[dict]:
    """The rows of stats.jsonl in order."""
    path = Path(run_dir) / "stats.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # the last line of a run that was killed while it wrote
    return rows


def grid(images: Tensor, columns: int) -> Tensor:
    """uint8 [N, 3, H, W] -> uint8 [3, rows*H, columns*W]; the last row is filled with white."""
    missing = -len(images) % columns
    if missing:
        images = torch.cat([images, images.new_full((missing, *images.shape[1:]), 255)])
    n, channels, height, width = images.shape
    rows = images.view(n // columns, columns, channels, height, width)
    return rows.permute(2, 0, 3, 1, 4).reshape(channels, n // columns * height, columns * width)


class Bar:
    """A progress bar with an ETA on a terminal; elsewhere a line a minute."""

    def __init__(self, label: str, total: int, start: int = 0, active: bool = True):
        console = Console(stderr=True)
        self.label, self.total, self.start, self.active = label, total, start, active
        self.began = self.spoken = time.monotonic()
        self.progress = None
        if active and console.is_terminal:
            columns = (
                TextColumn("{task.description:<12}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("eta"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self.progress = Progress(*columns, console=console, transient=True)
            self.task = self.progress.add_task(label, total=total, completed=start, note="")
            self.progress.start()

    def update(self, done: int, note: str = "") -> None:
        got_on()
        if self.progress is not None:
            self.progress.update(self.task, completed=done, note=note)
        elif self.active and time.monotonic() - self.spoken > 60:
            self.spoken = time.monotonic()
            left = (self.spoken - self.began) * (self.total - done) / max(done - self.start, 1)
            log.info("%s: %d of %d, about %.0f s left %s", self.label, done, self.total, left, note)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress is not None:
            self.progress.stop()


def _drop_after(path: Path, images: int) -> None:
    """A resumed run repeats no row: what an earlier start wrote beyond its checkpoint goes."""
    if path.exists():
        rows = [row for row in read_stats(path.parent) if row["images"] <= images]
        partial = path.with_name("stats.jsonl.partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(partial, path)
