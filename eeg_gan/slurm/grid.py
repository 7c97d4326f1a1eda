"""Which tasks a command means: `key=a,b,c` is a grid, a list file has one task per line; each has a folder."""

import hashlib
import itertools
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eeg_gan.config import UserError

OPEN, CLOSE = "[{(", "]})"


@dataclass(frozen=True)
class Point:
    """One task: the words that tell it from the others, and the name of its folder (empty where it is alone)."""

    label: str
    words: tuple[str, ...]


def points(words: Sequence[str], lists: str | Path | None = None) -> tuple[list[str], list[Point]]:
    """The words that all tasks share, and the tasks: the product of all grids and of the lines of the list file."""
    common, axes = [], []
    for word in words:
        name, equals, text = word.partition("=")
        values = split(text) if equals else [text]
        if len(values) == 1:
            common.append(f"{name}={values[0]}" if equals else word)
            continue
        if name == "run_dir":
            raise UserError(f"{word}: run_dir is one folder; each task of a grid gets its own below it")
        axes.append([(f"{name}={value}",) for value in values])
    if lists is not None:
        axes.append(read_list(lists))
    if not axes:
        return common, [Point("", ())]
    found = [tuple(itertools.chain(*choice)) for choice in itertools.product(*axes)]
    return common, _named(found)


def split(text: str) -> list[str]:
    """`a,b,c` at commas outside of brackets and quotes; a quoted piece loses its quotes."""
    pieces, depth, quote, piece = [], 0, "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in OPEN:
            depth += 1
        elif letter in CLOSE:
            depth -= 1
        elif letter == "," and depth == 0:
            pieces.append(piece)
            piece = ""
            continue
        piece += letter
    if quote or depth:
        return [text]  # not meant as a list: what is wrong with it, the config says
    pieces.append(piece)
    if len(pieces) > 1 and not all(own.strip() for own in pieces):
        raise UserError(f"{text!r}: a value between two commas is empty; write key=a,b,c, or quotes around a comma")
    return [_unquoted(own.strip()) for own in pieces] if len(pieces) > 1 else [_unquoted(text)]


def read_list(path: str | Path) -> list[tuple[str, ...]]:
    """One task per line, written as on a command line; empty lines and # comments are passed over."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of tasks: {error}") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}; quote it as a shell would want it") from None
        if any("=" not in word or word.startswith("run_dir=") for word in words):
            raise UserError(f"{path}, line {number}: a task is key=value words, and run_dir is not one of them")
        found += [tuple(words)] if words else []
    if not found:
        raise UserError(f"{path} lists no task; write one line of key=value words for each")
    return found


def _unquoted(text: str) -> str:
    simple = len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" and "," in text
    return text[1:-1] if simple else text


def _named(tasks: list[tuple[str, ...]]) -> list[Point]:
    """The name does not depend on the other tasks, so that a grown grid goes on with the old ones' folders."""
    found = {label(words): words for words in tasks}
    if len(found) < len(tasks):
        twice = next(words for words in tasks if tasks.count(words) > 1 or found[label(words)] != words)
        raise UserError(f"the task {' '.join(twice)} is there twice; leave one out")
    return [Point(name, words) for name, words in found.items()]


def label(words: Sequence[str]) -> str:
    """A folder's name of letters, digits and ._=+-,; what does not fit is replaced, and a digest keeps names apart."""
    whole = ",".join(words)
    name = re.sub(r"[^A-Za-z0-9._=+,-]", "_", whole)[:120].lstrip(".-")
    if name == whole:
        return name
    return f"{name}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
