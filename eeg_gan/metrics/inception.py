"""The published judge of FID and IS: torch-fidelity's InceptionV3 of 2015, and where its file of weights lies."""

import hashlib
import logging
import os

import torch
from torch import Tensor, nn

from eeg_gan.config import UserError
from eeg_gan.torchvision_compat import load

log = logging.getLogger("eeg_gan")


class Inception(nn.Module):
    """uint8 [B, 3, H, W] -> features [B, 2048], logits [B, 1008]: the 2015 InceptionV3 of published FID and IS.

    Logits are without bias, as in published inception scores.
    """

    name = "inception"
    only_uint8 = True  # its features change in steps, so that no derivative can be measured with it

    def __init__(self, weights: str):
        super().__init__()
        extractor = load("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
        self.network = extractor("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=weights)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.network(images)
        return features, logits


def weights_file(given: str | None) -> str:
    """The local file of InceptionV3 weights, fetched into torch's cache if need be; its pickle holds tensors only."""
    url = load("torch_fidelity.feature_extractor_inceptionv3").URL_INCEPTION_V3
    path = given or os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
    if not os.path.isfile(path):
        if given:
            raise UserError(
                f"{path}: no such detector weights; download {url} (SHA-256 begins with {_digest_in(url)}) and give "
                "its path as weights="
            )
        _download(url, path)
    try:
        torch.load(path, map_location="cpu", weights_only=True)  # torch_fidelity unpickles freely: admit only tensors
    except Exception as error:
        raise UserError(f"{path}: not a plain file of tensors ({error}); download it again from {url}") from None
    digest, published = _file_digest(path), _digest_in(url)
    if not digest.startswith(published):
        log.warning(
            "%s: its SHA-256 is %s..., that of torch-fidelity's file begins with %s; the figures are not comparable "
            "with published ones",
            path,
            digest[: len(published)],
            published,
        )
    return path


def _digest_in(url: str) -> str:
    """The first digits of the SHA-256 that a file of torch.hub has in its name."""
    return url.rsplit("-", 1)[1].split(".")[0]


def _file_digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, path, progress=False)
    except OSError as error:
        raise UserError(
            f"the inception weights could not be downloaded ({error}); on a machine with a network get {url} (its "
            f"SHA-256 begins with {_digest_in(url)}) and put it at {path}, or give its path as "
            f"weights=/path/to/{os.path.basename(url)}"
        ) from None
