"""What the report reads of a pipeline's folder; whatever is absent is a UserError that says which stage makes it."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file

from eeg_gan.config import UserError
from eeg_gan.data import features
from eeg_gan.data.loader import LoaderConfig
from eeg_gan.data.shards import Shards
from eeg_gan.stages.figures import class_colours
from eeg_gan.stages.loading import keys_of, open_shards, read_generated
from eeg_gan.training.checkpoint import file_digest

INPUTS = (  # a report made from other versions of these is made again
    "prepare/index.json",
    "audit/audit.json",
    "evaluate/metrics.json",
    "evaluate/details.safetensors",
    "evaluate/subjects.json",
    "seeds.json",
    "embed_triplet/features.safetensors",
    "embed/features.safetensors",
    "generate/manifest.json",
    "generate_shuffled/manifest.json",
    "generate_image2eeg/manifest.json",
    "encode/stats.jsonl",
    "align/stats.jsonl",
    "image2eeg/stats.jsonl",
    "gan/stats.jsonl",
)


class Runs:
    """The stages' folders below one pipeline folder, each opened when first asked for."""

    def __init__(self, folder: str | Path, seed: int = 0):
        self.folder, self.seed = Path(folder), seed
        if not self.folder.is_dir():
            raise UserError(f"pipeline={folder}: no such folder; give the run_dir of pipeline or demo")
        if not any((self.folder / name).exists() for name in INPUTS):
            raise UserError(f"pipeline={folder} holds no finished stage ({INPUTS[0]} and so on); run pipeline first")

    def digests(self) -> dict[str, str | None]:
        paths = {name: self.folder / name for name in INPUTS}
        return {name: file_digest(path) if path.exists() else None for name, path in paths.items()}

    def json(self, name: str) -> Any:
        path = self.folder / name
        if not path.exists():
            raise UserError(f"{name} is missing; the stage {name.split('/')[0]} makes it")
        return json.loads(path.read_text())

    def stages(self) -> list[str]:
        """Names of the folders with a run record, in the order in which they were started."""
        found = [path.parent for path in self.folder.glob("*/run.json")]
        return [path.name for path in sorted(found, key=lambda p: (self._began(p), p.name))]

    def _began(self, path: Path) -> float:
        config = path / "config.yaml"
        return (config if config.exists() else path / "run.json").stat().st_mtime

    @functools.cached_property
    def split(self) -> str:
        """What evaluate judged."""
        path = self.folder / "evaluate" / "config.yaml"
        return (yaml.safe_load(path.read_text()) if path.exists() else {}).get("split", "test")

    @functools.cached_property
    def shards(self) -> Shards:
        index = self.folder / "prepare" / "index.json"
        if not index.exists():
            raise UserError("prepare/index.json is missing, so there are no trials to show; the stage prepare makes it")
        return open_shards(LoaderConfig(index=str(index), verify="size"), ("train", self.split))

    @functools.cached_property
    def metas(self) -> list[dict]:
        return self.shards.metas(self.split)

    @functools.cached_property
    def place(self) -> dict[str, int]:
        """Trial number by key."""
        return {key: trial for trial, key in enumerate(self.shards.keys(self.split))}

    @property
    def names(self) -> tuple[str, ...]:
        return self.shards.card.class_names

    @property
    def colours(self) -> list[str]:
        return class_colours(len(self.names))

    @functools.cached_property
    def metrics(self) -> dict[str, dict]:
        return self.json("evaluate/metrics.json")

    @functools.cached_property
    def details(self) -> dict[str, np.ndarray]:
        path = self.folder / "evaluate" / "details.safetensors"
        return load_file(path) if path.exists() else {}

    def detail(self, *names: str) -> list[np.ndarray]:
        absent = [name for name in names if name not in self.details]
        if absent:
            raise UserError(
                f"evaluate/details.safetensors holds no {absent[0]}; the stage evaluate writes it where it applies"
            )
        return [self.details[name] for name in names]

    def features(self, stage: str) -> features.Features:
        return features.load(self.folder / stage)

    def labelled_trials(self) -> np.ndarray:
        """The trial numbers of the rows of details `labels` and `knn_predicted`."""
        if not (self.folder / "embed_triplet").is_dir():
            return np.arange(len(self.metas))
        return np.array([self.place[key] for key in keys_of(self.features("embed_triplet"), self.split)])

    @functools.cached_property
    def confounded(self) -> bool:
        audit = self.folder / "audit" / "audit.json"
        verdict = json.loads(audit.read_text())["verdict"] if audit.exists() else None
        return verdict == "confounded" or ((self.folder / INPUTS[0]).exists() and self.shards.confounded)

    @functools.cached_property
    def _pictures(self) -> dict:
        return {}

    def generated(self, stage: str) -> tuple[np.ndarray, np.ndarray]:
        """Trial numbers [N] and pictures uint8 [N, H, W, 3] of a generate run."""
        if stage not in self._pictures:
            keys, images = read_generated(self.folder / stage)
            absent = [key for key in keys if key not in self.place]
            if absent:
                raise UserError(
                    f"{stage} drew trial {absent[0]}, which is not in split {self.split}; generate for that split"
                )
            trials = np.array([self.place[key] for key in keys])
            self._pictures[stage] = trials, images.permute(0, 2, 3, 1).contiguous().numpy()
        return self._pictures[stage]

    def has(self, stage: str) -> bool:
        return (self.folder / stage / "manifest.json").exists()

    def image(self, trial: int, split: str | None = None) -> np.ndarray:
        """The stimulus uint8 [H, W, 3] of a trial."""
        found = self.shards.read(split or self.split, int(trial)).image
        if found is None:
            raise UserError("the data have no pictures, so there is no stimulus to show")
        return found

    def stimulus(self, trial: int) -> str:
        """What tells pictures apart."""
        meta = self.metas[trial]
        return meta["image_sha256"] or meta["stimulus"] or meta["key"]

    def pairing(self) -> str:
        if self.shards.card.pairing == "class":
            return (
                " EEG and pictures of this data set are paired by class only: the stimulus shown is any image of the "
                "class, not the one that was seen."
            )
        return ""
