"""Configuration: frozen dataclasses, filled from YAML and `key=value` words, checked before anything heavy starts.

A stage declares its keys in a dataclass beside the code that uses them; the comment behind a field is its help text.
Every mistake becomes one `UserError` line that names the key, says what was expected and suggests the nearest name.
"""

import difflib
import functools
import inspect
import io
import tokenize
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")


class UserError(ValueError):
    """A mistake that the user can mend: the message states the fact, the cause and the cure. Exit code 2."""

    exit_code = 2


@dataclass(frozen=True)
class Key:
    """One line of a verb's help."""

    name: str  # dotted
    type: str
    default: str
    meaning: str


def load(cls: type[T], path: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """`cls` from a YAML file (or only its defaults) with `key=value` words laid over it."""
    values = read_yaml(path) if path is not None else {}
    for word in overrides:
        _override(cls, values, word)
    return from_dict(cls, values, str(path) if path is not None else "the command line")


def read_yaml(path: str | Path) -> dict:
    """The mapping that a YAML file holds; an empty file is an empty mapping."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file{_suggest_file(Path(path))}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a config file: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: a config is a mapping of keys to values; this file holds a {type(values).__name__}")
    return values


def from_dict(cls: type[T], values: dict, origin: str) -> T:
    """`cls` from a nested mapping; `origin` names the file in errors.

    A class with an `underlay` (raw values -> values) has those where none are given.
    """
    try:
        values = _laid_over(getattr(cls, "underlay", lambda _: {})(values), values)
    except ValueError as error:
        raise UserError(f"{origin}: {error}") from None
    values = _prepared(cls, values, origin, "")
    try:
        return _adapter(cls).validate_python(values)
    except ValidationError as error:
        raise UserError(f"{origin}: {'; '.join(map(_one_line, error.errors()))}") from None


def to_dict(config: Any) -> dict:
    """The resolved config as plain containers, ready for YAML or JSON."""
    return _plain(asdict(config))


def to_yaml(config: Any) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False, width=120)


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """`key: old -> new` for each leaf in which two resolved configs differ."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            lines.append(f"{prefix}{name}: {before!r} -> {after!r}")
    return lines


def keys(cls: type, prefix: str = "") -> list[Key]:
    """Every key of a config with its type, default and meaning, in order of declaration."""
    found, hints, comments = [], typing.get_type_hints(cls), _comments(cls)
    for field in fields(cls):
        inner = _dataclass_in(hints[field.name])
        if inner is not None and not _is_container(hints[field.name]):
            found += keys(inner, f"{prefix}{field.name}.")
        else:
            found.append(
                Key(prefix + field.name, _type_name(hints[field.name]), _default(field), comments.get(field.name, ""))
            )
    return found


def _laid_over(below: dict, above: dict) -> dict:
    """Groups of keys are merged, everything else is taken from above where it is there."""
    merged = {**below, **above}
    for name in below.keys() & above.keys():
        if isinstance(below[name], dict) and isinstance(above[name], dict):
            merged[name] = _laid_over(below[name], above[name])
    return merged


def _override(cls: type, values: dict, word: str) -> None:
    name, equals, text = word.partition("=")
    if not equals or not name:
        raise UserError(f"{word!r}: a word after the config file is key=value, for example optim.lr=1e-3")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    *parents, last = name.split(".")
    place = values
    for parent in parents:
        if not isinstance(place.get(parent), dict):
            place[parent] = {}
        place = place[parent]
    place[last] = text if _declared(cls, name.split(".")) is str else value


def _declared(cls: type, path: list[str]) -> Any:
    """The type that a dotted key was declared with, or None where there is no such key."""
    hint: Any = cls
    for name in path:
        owner = _dataclass_in(hint)
        hint = typing.get_type_hints(owner).get(name) if owner else None
        if hint is None:
            return None
    return hint


def _prepared(cls: type, values: Any, origin: str, prefix: str) -> dict:
    """A copy with number texts made numbers by declared type; refuses unknown keys (pydantic has no 'did you mean')."""
    if not isinstance(values, dict):
        raise UserError(f"{origin}: {prefix.rstrip('.')} is a group of keys, but {values!r} was given")
    hints, result = typing.get_type_hints(cls), {}
    for name, value in values.items():
        if name not in hints:
            raise UserError(f"{origin}: unknown key {prefix}{name}{_suggest(str(name), hints, prefix)}")
        inner = _dataclass_in(hints[name])
        if inner is not None and isinstance(value, dict) and not _is_container(hints[name]):
            value = _prepared(inner, value, origin, f"{prefix}{name}.")
        elif inner is not None and value is not None and not isinstance(value, (dict, list)):
            raise UserError(f"{origin}: {prefix}{name} is a group of keys, but {value!r} was given")
        result[name] = _number(hints[name], value, f"{origin}: {prefix}{name}")
    return result


def _number(hint: Any, value: Any, where: str) -> Any:
    """PyYAML reads 1e-3 as text, and pydantic takes true for 1: both are settled by the declared type."""
    options = set(_options(hint))
    if isinstance(value, bool) and options & {int, float} and bool not in options:
        raise UserError(f"{where}: expected a number, got {str(value).lower()}")
    if isinstance(value, str) and int in options and str not in options:
        try:
            number = float(value)
        except ValueError:
            return value
        return int(number) if number.is_integer() else number
    return value


def _options(hint: Any) -> tuple:
    return (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )


def _dataclass_in(hint: Any) -> type | None:
    return next((option for option in _options(hint) if is_dataclass(option)), None)


def _is_container(hint: Any) -> bool:
    return typing.get_origin(hint) in (list, tuple, dict)


@functools.cache
def _adapter(cls: type) -> TypeAdapter:
    _allow_numbers_as_text(cls)
    return TypeAdapter(cls)


def _allow_numbers_as_text(cls: type) -> None:
    cls.__pydantic_config__ = ConfigDict(coerce_numbers_to_str=True)
    for hint in typing.get_type_hints(cls).values():
        inner = _dataclass_in(hint)
        if inner is not None:
            _allow_numbers_as_text(inner)


def _one_line(error: dict) -> str:
    where = ".".join(str(part) for part in error["loc"] if not isinstance(part, type)) or "the config"
    if error["type"] == "value_error":
        return f"{where}: {error['ctx']['error']}"
    if error["type"] == "missing":
        return f"{where} is missing; write it in the file or as {where}=VALUE"
    if error["type"] in ("tuple_type", "list_type"):
        return f"{where}: expected a list, such as [{error['input']}]"
    message = error["msg"][0].lower() + error["msg"][1:]
    hint = ""
    if error["type"] == "literal_error":
        close = difflib.get_close_matches(
            str(error["input"]), error["ctx"]["expected"].replace("'", "").split(), 1, 0.5
        )
        hint = f"; did you mean {close[0].strip(',')}?" if close else ""
    return f"{where}: {message}, got {error['input']!r}{hint}"


def _suggest(name: str, known: Any, prefix: str) -> str:
    close = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f"; did you mean {prefix}{close[0]}?" if close else f"; the keys here are {', '.join(known)}"


def _suggest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    close = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1, 0.4)
    return f"; did you mean {path.parent / close[0]}?" if close else ""


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _comments(cls: type) -> dict[str, str]:
    """Field name -> the comment behind it, read from the source so that help and code cannot disagree."""
    try:
        source = inspect.cleandoc("\n" + inspect.getsource(cls))
    except (OSError, TypeError):
        return {}
    comments, name, start = {}, None, True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and name:
            comments[name] = (
                f"{comments[name]} {token.string.lstrip('# ')}" if name in comments else token.string.lstrip("# ")
            )
        elif token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            start = True
        elif start and token.type == tokenize.NAME:
            name, start = token.string, False
    return comments


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(str, typing.get_args(hint)))
    if len(_options(hint)) > 1:
        return " | ".join("null" if option is type(None) else _type_name(option) for option in _options(hint))
    return getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint).replace("typing.", "")


def _default(field: Any) -> str:
    value = field.default if field.default is not MISSING else None
    if field.default is MISSING:
        if field.default_factory is MISSING:
            return "required"
        value = field.default_factory()
    return yaml.safe_dump(_plain(value), default_flow_style=True, width=200).splitlines()[0]
