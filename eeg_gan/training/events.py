"""TensorBoard's event files of one run as one stream: read, cut back to a checkpoint, and what is written once.

A record is its length in 8 bytes, the length's checksum in 4, an Event message, and the message's checksum in 4.
"""

import os
import shutil
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

THUMBNAIL = 32  # pixels; a thousand of them make a sprite of 1024


def paths(run_dir: Path) -> list[Path]:
    """The event files in the order in which they were begun."""

    def begun(path: Path) -> tuple[float, str]:
        first = next((event.wall_time for event, _ in _records(path)), 0.0)
        return first, path.name

    return sorted(run_dir.glob("events.out.tfevents.*"), key=begun)


def read(run_dir: str | Path) -> Iterator[Any]:
    """Every Event message of a run, in order."""
    for path in paths(Path(run_dir)):
        yield from (event for event, _ in _records(path))


def cut_after(run_dir: Path, images: int) -> dict[tuple[str, int], Any]:
    """Takes away what was written beyond `images`, and torn records; returns the kept values by tag and step.

    Files are shortened where they are, not written anew, so that a TensorBoard that is looking goes on.
    """
    kept: dict[tuple[str, int], Any] = {}
    over = False
    for path in paths(run_dir):
        end = 0
        for event, behind in () if over else _records(path):
            over = event.step > images
            if over:
                break
            end = behind
            kept |= {(value.tag, event.step): value for value in event.summary.value}
        if not any(event.HasField("summary") for event, behind in _records(path) if behind <= end):
            path.unlink()
        elif end < path.stat().st_size:
            os.truncate(path, end)
    return kept


def let_thread_end_silently() -> None:
    """TensorBoard's writing thread ends on a full disk, and the next flush raises the same error: it is said once."""
    former = threading.excepthook
    if getattr(former, "of_events", False):
        return

    def hook(found: threading.ExceptHookArgs) -> None:
        if not (isinstance(found.exc_value, OSError) and type(found.thread).__name__ == "_AsyncWriterThread"):
            former(found)

    hook.of_events = True
    threading.excepthook = hook


def session(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Summaries of TensorBoard's hparams page: a session's settings, and its end.

    The third kind, an experiment's list of settings and metrics, is left out: of several runs in one folder only the
    first one's would count, and TensorBoard makes the list itself of what the runs hold.
    """
    from torch.utils.tensorboard.summary import hparams

    _, start, end = hparams(_flat(config), {})
    return start, end


def write_embedding(writer: Any, features: Tensor, header: Sequence[str], rows: Sequence[Sequence[str]], images: Any):
    """TensorBoard's projector: features [N, D], a row of texts each, and pictures uint8 [N, 3, H, W] as thumbnails."""
    shutil.rmtree(Path(writer.get_logdir()) / "00000", ignore_errors=True)  # of an earlier start
    thumbnails = None
    if images is not None:
        thumbnails = F.interpolate(images.float(), (THUMBNAIL, THUMBNAIL), mode="area") / 255
    # one column has no header in this format
    metadata, header = (list(rows), list(header)) if len(header) > 1 else ([row[0] for row in rows], None)
    writer.add_embedding(features.float(), metadata, thumbnails, 0, "features", header)


def text_of(value: Any) -> str:
    """The text of a value that add_text wrote."""
    return value.tensor.string_val[0].decode() if value.tensor.string_val else ""


def _records(path: Path) -> Iterator[tuple[Any, int]]:
    """(Event, offset behind it); ends before a torn or damaged record."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    with open(path, "rb") as file:
        while len(head := file.read(12)) == 12:
            length, checksum = struct.unpack("<QI", head)
            if checksum != masked_crc32c(head[:8]):
                return
            body = file.read(length + 4)
            if len(body) < length + 4 or struct.unpack("<I", body[-4:])[0] != masked_crc32c(body[:-4]):
                return
            yield Event.FromString(body[:-4]), file.tell()


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys; TensorBoard takes numbers, truth values and texts."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat
