"""Networks that judge images: features for distances between sets, logits for the class of what was generated."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from eeg_gan.config import UserError
from eeg_gan.metrics.inception import Inception, weights_file
from eeg_gan.metrics.squeezenet import SqueezeNet

# Published ResNet-56 on 10,000 JPEG test images of CIFAR-10: .8332 with CIFAR-10's statistics, .8320 with ImageNet's.
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


SIZES = {"classifier": (32, 16, 64), "squeezenet": (96, 32, 256)}  # default, smallest and largest side


@dataclass(frozen=True)
class DetectorConfig:
    name: Literal["classifier", "resnet56", "inception", "squeezenet", "torchscript", "tower"] = (
        "classifier"  # own, CIFAR-10's, published FID's, small ImageNet's, any TorchScript file, any open_clip model
    )
    weights: str | None = None  # safetensors; inception: its .pth, null: torch-fidelity's cache; torchscript: .pt
    model: str | None = None  # tower: as tower.model of align (ViT-B-32, hf-hub:timm/..., a .json); weights: or its tag
    n_classes: int = 10  # classifier without weights: number of classes
    image_size: int | None = None  # classifier (null: 32), squeezenet (null: 96): images are resized to this
    untrained: bool = False  # accept random weights: a test of the plumbing, whose figures mean nothing
    label: str | None = None  # name shown in metrics; null is the detector's name

    def __post_init__(self):
        if self.untrained and (self.name not in ("classifier", "tower") or self.weights is not None):
            raise ValueError("untrained asks for a classifier or tower of random weights; drop it, or name and weights")
        if self.name == "classifier" and self.weights is None and not self.untrained:
            raise ValueError(
                "the classifier has no weights, so its figures would mean nothing; set weights=FILE.safetensors "
                "(eeg-gan demo trains one: runs/demo/classifier/weights.safetensors; fit_classifier of "
                "eeg_gan/metrics/detectors.py fits your images), or take name=resnet56 or inception"
            )
        if self.name == "torchscript" and self.weights is None:
            raise ValueError("name=torchscript judges by a file; set weights=FILE.pt, made by torch.jit.save")
        named = self.untrained or self.weights is not None or (self.model or "").startswith("hf-hub:")
        if self.name == "tower" and not named:
            raise ValueError(
                "the tower has no weights, so its figures would mean nothing; set weights to a tag of open_clip "
                "(openai) or to a local file"
            )
        if (self.name == "tower") != (self.model is not None):
            raise ValueError("name=tower and model belong together; set model=ViT-B-32, say, or take another name")
        if self.label is not None and (not self.label or set(self.label) & set("[]/")):
            raise ValueError(f"label is part of the metrics' names, without brackets and slashes; got {self.label!r}")
        if self.image_size is not None and self.name not in SIZES:
            raise ValueError(f"{self.name} has its own size of images; image_size is of {' and '.join(SIZES)}")
        _, least, most = SIZES.get(self.name, (0, 0, 0))
        if not least <= self.size <= most:
            raise ValueError(
                f"the {self.name} sees images of {least} to {most} pixels, got image_size={self.image_size}"
            )
        if self.n_classes < 1:
            raise ValueError(f"n_classes counts classes, so it must be 1 or more; got {self.n_classes}")

    @property
    def size(self) -> int:
        """The side in pixels to which images are resized; 0 where the detector has its own."""
        return self.image_size or SIZES.get(self.name, (0,))[0]


def shown_name(config: DetectorConfig) -> str:
    """What stands in brackets behind a metric."""
    return ("untrained-" if config.untrained else "") + (config.label or config.name)


def logit_columns(
    config: DetectorConfig, n_logits: int, given: Sequence[str] | None, wanted: Sequence[str]
) -> list[int] | None:
    """The logit of each wanted class; None where nobody says which logit means what.

    `given` are the names of the logits: CIFAR-10's for resnet56 where they are not given, the wanted classes themselves
    for a classifier.
    """
    known = {"resnet56": CIFAR_CLASSES, "classifier": tuple(wanted)}.get(config.name)
    names = known if given is None else tuple(given)
    if names is None:
        return None
    if len(names) != n_logits:
        raise UserError(
            f"the detector {config.name} tells {n_logits} classes apart, but {len(names)} names are there "
            f"({', '.join(names[:5])} ...); give the name of every logit, in order, as detector_class_names"
        )
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise UserError(f"the detector does not know the class {unknown[0]!r}; its classes are {', '.join(names)}")
    return [names.index(name) for name in wanted]


class SmallClassifier(nn.Module):
    """uint8 [B, 3, H, W] -> features [B, 128], logits [B, n_classes]; trains in seconds on a CPU."""

    name = "classifier"

    def __init__(self, n_classes: int, image_size: int = 32):
        super().__init__()
        self.image_size = image_size
        blocks, width_in = [], 3
        for width, stride in ((32, 1), (64, 2), (128, 2)):
            blocks += [nn.Conv2d(width_in, width, 3, stride, 1), nn.GroupNorm(8, width), nn.ReLU()]
            width_in = width
        self.blocks = nn.Sequential(*blocks, nn.Conv2d(128, 128, 3, 2, 1), nn.GroupNorm(8, 128), nn.ReLU())
        self.linear = nn.Linear(128, n_classes)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps [B, C, h, w] after each convolution."""
        x, found = _resized(images, self.image_size) / 127.5 - 1, []
        for layer in self.blocks:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x)
        return found

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.maps(images)[-1].mean((2, 3))
        return features, self.linear(features)


class ResNet56(nn.Module):
    """uint8 [B, 3, H, W] -> features [B, 64], logits [B, 10]: the CIFAR-10 network of He et al. 2016, section 4.2.

    Three stages of nine two-layer blocks, widths 16, 32, 64; shortcuts are subsampled and padded with zeros (option A).
    """

    name = "resnet56"

    def __init__(self, n_classes: int = 10):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = _stage(16, 16), _stage(16, 32), _stage(32, 64)
        self.linear = nn.Linear(64, n_classes)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps [B, C, h, w] after each stage."""
        x = _normalised(_resized(images, 32) / 255, CIFAR_MEAN, CIFAR_STD)
        first = self.layer1(F.relu(self.bn1(self.conv1(x))))
        second = self.layer2(first)
        return [first, second, self.layer3(second)]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.maps(images)[-1].mean((2, 3))
        return features, self.linear(features)


class _Block(nn.Module):
    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.stride, self.padding = width // width_in, (width - width_in) // 2
        self.conv1 = nn.Conv2d(width_in, width, 3, self.stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(h + shortcut)


class Scripted(nn.Module):
    """A TorchScript file that gives features [B, ...] of images [B, 3, H, W], 0 to 255, or (features, logits)."""

    name = "torchscript"

    def __init__(self, path: str):
        super().__init__()
        if not os.path.isfile(path):
            raise UserError(f"{path}: no such detector weights; give a file that torch.jit.save wrote as weights=")
        try:
            self.network = torch.jit.load(path, map_location="cpu")
        except RuntimeError as error:
            first = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: not a TorchScript file ({first}); make one by torch.jit.trace and save") from None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.network(images)
        features, logits = found if isinstance(found, tuple) else (found, found.new_zeros(len(found), 0))
        return features.flatten(1), logits


class Embedder(nn.Module):
    """A network that embeds images [B, 3, H, W], 0 to 255, and tells no classes apart."""

    name = "tower"

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network(images)
        return features, features.new_zeros(len(features), 0)


DETECTORS = {
    "classifier": SmallClassifier,
    "resnet56": ResNet56,
    "inception": Inception,
    "squeezenet": SqueezeNet,
    "torchscript": Scripted,
    "tower": Embedder,
}


def build_detector(config: DetectorConfig, tower: nn.Module | None = None) -> nn.Module:
    """The detector in evaluation mode: `.name`, and forward of [B, 3, H, W], 0 to 255, to (features [B, F], logits).

    Logits are [B, 0] where it tells no classes apart; some have `maps` too. `tower` is the network of name=tower.
    """
    if config.name == "tower":
        assert tower is not None, "the caller builds the tower"
        return Embedder(tower).eval()
    if config.name == "torchscript":
        return Scripted(config.weights).eval()
    if config.name == "inception":
        return Inception(weights_file(config.weights)).eval()
    if config.weights is None and config.name == "squeezenet":
        raise UserError(
            "detector squeezenet needs weights: squeezenet1_1 of github.com/DeepCognition/keras-squeezenet without its "
            f"classifier, as a file of PyTorch's made into safetensors; {CONVERSION}; then set weights=FILE.safetensors"
        )
    if config.weights is None and config.name == "resnet56":
        raise UserError(
            "detector resnet56 needs weights: resnet56-4bfd9763.th of github.com/akamaster/pytorch_resnet_cifar10, "
            f"made into safetensors; {CONVERSION}; then set weights=FILE.safetensors"
        )
    state = None if config.weights is None else _read_state(config.weights)
    n_classes = config.n_classes if state is None or "linear.bias" not in state else len(state["linear.bias"])
    if config.name == "resnet56":
        model = ResNet56(n_classes)
    elif config.name == "squeezenet":
        model = SqueezeNet(config.size)
    else:
        model = SmallClassifier(n_classes, config.size)
    if state is not None:
        _load_state(model, state, config.weights)
    return model.eval()


CONVERSION = (
    'convert it by: python -c "import sys, torch; from safetensors.torch import save_file; '
    "s = torch.load(sys.argv[1], map_location='cpu', weights_only=True); s = s.get('state_dict', s); "
    "save_file({k.removeprefix('module.'): v.contiguous() for k, v in s.items()}, sys.argv[2])\" IN.th OUT.safetensors"
)


@torch.enable_grad()
def fit_classifier(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    steps: int = 400,
    batch: int = 64,
    lr: float = 2e-3,
    seed: int = 0,
    after_step: Callable[[int], None] = lambda step: None,
    half: bool = False,
) -> nn.Module:
    """Trains `model` on uint8 images [N, 3, H, W] and labels [N] with light augmentation; left in evaluation mode.

    Order, shifts and noise are functions of the seed; the weights' start is the caller's. `after_step` is told how many
    steps are done. `half` trains in bfloat16 where that may be (autocast).
    """
    generator, device = torch.Generator().manual_seed(seed), next(model.parameters()).device
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=max(steps, 2))
    model.train()
    for step in range(1, steps + 1):
        own = torch.randint(len(images), (batch,), generator=generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = model(augmented(images[own.to(images.device)], generator).to(device))[1]
        optimiser.zero_grad()
        F.cross_entropy(logits.float(), labels[own.to(labels.device)].to(device)).backward()
        optimiser.step()
        schedule.step()
        after_step(step)
    return model.eval()


def augmented(images: Tensor, generator: torch.Generator, shift: float = 0.1, noise: float = 8.0) -> Tensor:
    """uint8 images [B, 3, H, W], moved by up to `shift` of their size (edges repeated), with noise in grey levels."""
    b, _, h, w = images.shape
    reach = max(1, round(shift * min(h, w)))
    moves = torch.randint(2 * reach + 1, (2, b), generator=generator)
    rows, columns = (m[:, None] + torch.arange(n) for m, n in zip(moves, (h, w), strict=True))
    padded = F.pad(images.float(), (reach,) * 4, mode="replicate")
    place = torch.arange(b)[:, None, None], slice(None), rows[:, :, None], columns[:, None, :]
    moved = padded[place].permute(0, 3, 1, 2)  # a slice between index arrays lands last
    noisy = moved + noise * torch.randn(moved.shape, generator=generator).to(moved)
    return noisy.round().clamp(0, 255).to(torch.uint8)


def _stage(width_in: int, width: int, blocks: int = 9) -> nn.Sequential:
    return nn.Sequential(_Block(width_in, width), *(_Block(width, width) for _ in range(blocks - 1)))


def _resized(images: Tensor, size: int) -> Tensor:
    x = images.float()
    if x.shape[2:] == (size, size):
        return x
    return F.interpolate(x, (size, size), mode="bicubic", align_corners=False, antialias=True).clamp(0, 255)


def _normalised(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    mean, std = (torch.tensor(v, device=x.device, dtype=x.dtype).view(1, 3, 1, 1) for v in (mean, std))
    return (x - mean) / std


def _read_state(path: str) -> dict[str, Tensor]:
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such detector weights; give the path of a safetensors file as weights=")
    if not path.endswith(".safetensors"):
        raise UserError(f"{path}: weights are read from safetensors only, a pickle can run code; {CONVERSION}")
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own type for a damaged header, OSError for the rest
        raise UserError(f"{path}: not a readable safetensors file ({error}); copy or convert it again") from None


def _load_state(model: nn.Module, state: dict[str, Tensor], path: str) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: these are not weights of the {model.name} network ({first}); give its own") from None
