"""Embeddings of pictures by a frozen tower, computed once and kept beside the run for all runs of the folder.

What is kept is found by the digest of the tower and by that of each picture, so that another split of the same
pictures, or a later run, computes only what it has not seen.
"""

from pathlib import Path

import torch
from torch import Tensor

from eeg_gan.data.loader import Reader
from eeg_gan.distributed import barrier, is_main, sum_over_ranks
from eeg_gan.models.image_tower import ImageTower, tower_digest
from eeg_gan.stages.loading import embed_images, unique_images
from eeg_gan.training import kept


def cache_folder(run_dir: str | Path) -> Path:
    """Where embeddings are kept: beside the run."""
    return Path(run_dir).parent / "tower-cache"


def pictures_of(tower: ImageTower, reader: Reader, run_dir: str | Path, device: torch.device) -> tuple[Tensor, Tensor]:
    """Embeddings [M, E] of a split's distinct pictures, and for every trial the number of its picture [N]."""
    first, numbers = unique_images(reader.shards, reader.split)
    return cached_embeddings(tower, reader, first, cache_folder(run_dir), device), numbers


def cached_embeddings(
    tower: ImageTower, reader: Reader, trials: list[int], folder: Path, device: torch.device
) -> Tensor:
    """Tower embeddings [M, E] of the pictures of the given trials, equal on every rank; unknown ones are computed."""
    path = folder / f"{tower_digest(tower)[:24]}.safetensors"
    metas = reader.shards.metas(reader.split)
    names = [metas[trial]["image_sha256"] for trial in trials]
    known = _read(path) if is_main() else {}
    absent = _from_main(torch.tensor([float(name not in known) for name in names]))
    found = torch.zeros(len(names), tower.dim)
    for row, name in enumerate(names) if is_main() else ():
        if name in known:
            found[row] = known[name]
    found = _from_main(found)
    missing = absent.nonzero().flatten().tolist()
    if missing:
        found[missing] = embed_images(tower, reader, [trials[row] for row in missing], device).cpu()
        if is_main():
            _write(path, known | {names[row]: found[row] for row in missing})
        barrier()
    return found


def _from_main(x: Tensor) -> Tensor:
    """The tensor of rank 0 on every rank; another run may write the file between two ranks' readings."""
    return sum_over_ranks(x if is_main() else torch.zeros_like(x))


def _read(path: Path) -> dict[str, Tensor]:
    """Embedding by the sha256 of the picture."""
    tensors = kept.read(path, "its embeddings are computed again")
    if tensors is None:
        return {}
    names = [bytes(row).hex() for row in tensors["pictures"].numpy()]
    return dict(zip(names, tensors["embeddings"], strict=True))


def _write(path: Path, known: dict[str, Tensor]) -> None:
    names = sorted(known)
    tensors = {
        "pictures": torch.tensor([list(bytes.fromhex(name)) for name in names], dtype=torch.uint8),
        "embeddings": torch.stack([known[name] for name in names]),
    }
    kept.write(path, tensors, "the embeddings will be computed again next time")
