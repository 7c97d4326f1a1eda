"""Checkpoints: folders that appear whole or not at all, of safetensors and JSON. No pickle is written or read.

run_dir/checkpoint-00000012800/  NAME.safetensors ...  state.json {images, files: {name: sha256}, meta, ...}
run_dir/best.json                {checkpoint, metric, value}

A folder under a checkpoint's name is whole from its first to its last moment: it comes and goes by a rename. What a
killed process leaves beside it has a suffix: .partial (never finished), .replaced and .removed (no longer wanted).
"""

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eeg_gan.config import UserError
from eeg_gan.distributed import barrier, from_main, is_main

PREFIX = "checkpoint-"
log = logging.getLogger("eeg_gan")


@dataclass
class Checkpoint:
    """Named groups of tensors (`encoder`, `optimiser` ...) and a JSON state at one count of images."""

    images: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None


def save(run_dir: Path, checkpoint: Checkpoint) -> Path:
    """Writes beside, fsyncs, renames."""
    final = _folder(run_dir, checkpoint.images)
    partial, replaced = final.with_suffix(".partial"), final.with_suffix(".replaced")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        files = {
            name: _write_tensors(partial / f"{name}.safetensors", group) for name, group in checkpoint.tensors.items()
        }
        state = {"images": checkpoint.images, "files": files, **checkpoint.state}
        write_json(partial / "state.json", {**state, "sha256": _state_digest(state)})
        _sync_folder(partial)
        if final.exists():  # the same state again, or a damaged one
            shutil.rmtree(replaced, ignore_errors=True)
            os.replace(final, replaced)
        os.replace(partial, final)
        _sync_folder(run_dir)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise _could_not_save(final, error) from None
    return final


def resume(
    run_dir: Path,
    modules: dict[str, nn.Module],
    optimisers: dict[str, torch.optim.Optimizer],
    keep: int | None = 2,
) -> tuple[int, dict[str, Any]]:
    """Loads the newest checkpoint into networks and optimisers; returns its images and state, or (0, {}) to start.

    Rank 0 settles which one that is, and puts the folder in order: only the process that writes a run does that.
    `keep` is what `save_run` was given: a kill may have come between the last save and its deletions.
    """
    if is_main():
        _put_in_order(run_dir)
    found = newest(run_dir) if is_main() else None
    images = int(from_main({"images": -1 if found is None else found.images})["images"])
    if images < 0:
        return 0, {}
    found = found or _at(run_dir, images)
    for name, module in modules.items():
        restore(module, found.tensors.get(name, {}), found.path)
    for name, optimiser in optimisers.items():
        restore_optimiser(optimiser, found.tensors.get(name, {}))
    best = found.state.get("best")
    if is_main():
        _set_aside_after(run_dir, found.images)
        if best is not None and _folder(run_dir, best["images"]).is_dir():  # a kill between save and mark is mended
            mark_best(run_dir, best["images"], found.state["select"], best[found.state["select"]])
        forget(run_dir, keep)
    barrier()
    log.info("%s: going on at %d images", run_dir.name, found.images)
    return found.images, found.state


def save_run(
    run_dir: Path,
    images: int,
    modules: dict[str, nn.Module],
    optimisers: dict[str, torch.optim.Optimizer],
    state: dict[str, Any],
    metric: str | None = None,
    keep: int | None = 2,
) -> None:
    """Saves networks, optimisers and state; points best.json here when `state["best"]` was reached at these images."""
    tensors = {name: module.state_dict() for name, module in modules.items()}
    tensors |= {name: optimiser_tensors(optimiser) for name, optimiser in optimisers.items()}
    best = state.get("best")
    save(run_dir, Checkpoint(images, tensors, {**state, "select": metric}))
    if metric is not None and best is not None and best["images"] == images:
        mark_best(run_dir, images, metric, best[metric])
    forget(run_dir, keep)


def _put_in_order(run_dir: Path) -> None:
    """After a kill: what was whole and lost its name gets it back, what was half made or half deleted goes."""
    for replaced in run_dir.glob(f"{PREFIX}*.replaced"):
        if not replaced.with_suffix("").exists():
            os.replace(replaced, replaced.with_suffix(""))
    for suffix in ("partial", "replaced", "removed"):
        for left in run_dir.glob(f"{PREFIX}*.{suffix}"):
            shutil.rmtree(left, ignore_errors=True)


def _set_aside_after(run_dir: Path, images: int) -> None:
    """Damaged checkpoints behind the one that is used would count as the newest; they stay under another name."""
    for path in _all(run_dir):
        if int(path.name.removeprefix(PREFIX)) > images:
            aside = path.with_suffix(".damaged")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)
            log.warning("%s is set aside as %s", path, aside.name)


def _folder(run_dir: Path, images: int) -> Path:
    return run_dir / f"{PREFIX}{images:011d}"


def _all(run_dir: Path) -> list[Path]:
    """Folders with a checkpoint's name, from old to new."""
    return sorted(run_dir.glob(f"{PREFIX}*[0-9]"))


def mark_best(run_dir: Path, images: int, metric: str, value: float) -> None:
    """Points best.json at a checkpoint, atomically."""
    write_json(run_dir / "best.json", {"checkpoint": _folder(run_dir, images).name, "metric": metric, "value": value})


def newest(run_dir: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; a damaged one is named and passed over."""
    for path in reversed(_all(run_dir)):
        try:
            found = load(path)
            if found.images != int(path.name.removeprefix(PREFIX)):
                raise UserError(f"{path} holds the state of {found.images} images")
            return found
        except UserError as error:
            log.warning("%s; going back to the checkpoint before it", error)
    return None


def chosen(run_dir: str | Path, at: int | None = None) -> Checkpoint:
    """What other stages read of a run: its best checkpoint where one was selected, else its newest.

    `at` names another one by its count of images.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: no such run directory; run the stage that makes it first")
    if run_dir.name.startswith(PREFIX):
        raise UserError(f"{run_dir} is one checkpoint; give its run directory, {run_dir.parent}")
    if at is not None:
        return _at(run_dir, at)
    best = run_dir / "best.json"
    if best.exists():
        try:
            return load(run_dir / json.loads(best.read_text())["checkpoint"])
        except (UserError, KeyError, json.JSONDecodeError) as error:
            log.warning("%s cannot be used (%s); taking the newest checkpoint instead", best, error)
    found = newest(run_dir)
    if found is None:
        broken = sum(1 for _ in run_dir.glob(f"{PREFIX}*[0-9]"))
        if broken:
            raise UserError(f"{run_dir}: of its checkpoints ({broken}) none is whole; copy it again, or train anew")
        raise UserError(f"{run_dir} holds no checkpoint; run the stage that trains it first")
    return found


def _at(run_dir: Path, images: int) -> Checkpoint:
    path = _folder(run_dir, images)
    if not path.is_dir():
        held = [str(int(own.name.removeprefix(PREFIX))) for own in _all(run_dir)]
        raise UserError(
            f"{run_dir} holds no checkpoint of {images} images, but of {', '.join(held) or 'none'}; take one of these, "
            "or train again with keep_checkpoints=null"
        )
    return load(path)


def load(path: Path) -> Checkpoint:
    """Reads one checkpoint folder and checks every file against its digest."""
    try:
        state = json.loads((path / "state.json").read_text())
        images, files, digest = int(state["images"]), dict(state["files"]), state.pop("sha256", None)
        if digest is not None and digest != _state_digest(state):
            raise ValueError("its content does not have its recorded digest")
    except (OSError, ValueError, KeyError, TypeError) as error:  # also bytes that are no text
        reason = getattr(error, "strerror", None) or str(error) or "empty"
        raise UserError(f"{path}: not a whole checkpoint (state.json: {reason})") from None
    tensors = {}
    for name, digest in files.items():
        file = path / f"{name}.safetensors"
        if not file.exists():
            raise UserError(f"{file} is missing; the checkpoint is damaged, delete its folder to use the one before it")
        if file_digest(file) != digest:
            raise UserError(f"{file} does not have its recorded digest; delete {path} to use the checkpoint before it")
        tensors[name] = load_file(file)
    return Checkpoint(images, tensors, state, path)


def restore(module: nn.Module, tensors: dict[str, Tensor], origin: object) -> None:
    """Loads weights into a module; another architecture is refused with the first names and shapes that differ."""
    own = module.state_dict()
    wrong = [f"{name} is missing there" for name in own.keys() - tensors.keys()]
    wrong += [f"{name} is not in this network" for name in tensors.keys() - own.keys()]
    wrong += [
        f"{name} is {list(tensors[name].shape)} there and {list(own[name].shape)} here"
        for name in own.keys() & tensors.keys()
        if own[name].shape != tensors[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"{origin}: a checkpoint of another architecture: {'; '.join(sorted(wrong)[:3])}{more}. "
            "Use the model keys that its config.yaml holds, or another run_dir"
        )
    module.load_state_dict(tensors)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as flat named tensors, `index.key`."""
    return {
        f"{index}.{key}": torch.as_tensor(value)
        for index, values in optimiser.state_dict()["state"].items()
        for key, value in values.items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimiser_tensors`; learning rates and betas stay those of the config."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def tensors_digest(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes: equal weights, equal digest."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _state_digest(state: dict[str, Any]) -> str:
    """Of a state as it comes back from JSON."""
    text = json.dumps(json.loads(json.dumps(state)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Writes JSON beside and renames, so that a reader never sees half a file."""
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    _sync_folder(path.parent)


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """One safetensors file, written beside and renamed; a full disk is the user's to mend."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        _write_tensors(partial, tensors)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise _could_not_save(path, error) from None


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> str:
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, path)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return file_digest(path)


def _could_not_save(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(
        f"{path} could not be saved: {reason}. What was saved before it is whole; "
        "make room (or raise the file-size limit) and give the same command again"
    )


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def forget(run_dir: Path, keep: int | None) -> None:
    """Deletes all checkpoints but the newest `keep` and the best; None keeps all."""
    if keep is None:
        return
    best = run_dir / "best.json"
    kept = {json.loads(best.read_text())["checkpoint"]} if best.exists() else set()
    for path in _all(run_dir)[:-keep]:
        if path.name not in kept:
            removed = path.with_suffix(".removed")
            os.replace(path, removed)
            shutil.rmtree(removed, ignore_errors=True)
