"""An encoder of one data set on another: electrodes are mapped, rate and length must agree, people are new."""

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from eeg_gan.config import UserError, differences
from eeg_gan.data.shards import Shards
from eeg_gan.models.eeg.montage import Absent, mixing
from eeg_gan.stages.loading import LoadedEncoder, about_data, load_encoder

log = logging.getLogger("eeg_gan")


class Mapped(nn.Module):
    """Other data's electrodes [B, C', T] made those that an encoder was trained on; of layers of people, the mean."""

    def __init__(self, encoder: nn.Module, weights: Tensor):
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mixing", weights)  # [C, C']

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(self.mixing @ x)


def transferred(run_dir: str | Path, shards: Shards, absent: Absent) -> LoadedEncoder:
    """The encoder of `run_dir` for data that it was not trained on."""
    loaded = load_encoder(run_dir)
    trained, given = loaded.state["data"], about_data(shards)
    for key, cure in (
        ("sfreq", f"prepare these with preprocess.resample_hz={trained['sfreq']:g}"),
        ("n_times", f"prepare these with a crop_s of {trained['n_times'] / trained['sfreq']:g} s"),
    ):
        if trained[key] != given[key]:
            raise UserError(f"{run_dir} was trained with {key} {trained[key]}, but the data have {given[key]}; {cure}")
    if trained["split_digest"] == given["split_digest"]:
        raise UserError(f"{run_dir} was trained on these very data; set other_data=false")
    changed = differences(*(about["preprocessing"].get("config", {}) for about in (trained, given)))
    if changed:
        log.warning("the encoder was trained on EEG that was preprocessed otherwise: %s", "; ".join(changed))
    if trained["class_names"] == given["class_names"]:
        log.warning(
            "%s was trained on data with the same classes: where they are the same recordings under another split, its "
            "training trials may be judged here",
            run_dir,
        )
    weights = torch.from_numpy(mixing(given["ch_names"], trained["ch_names"], absent, key="absent")).float()
    return LoadedEncoder(Mapped(loaded.module, weights), loaded.config, loaded.digest, loaded.state)
