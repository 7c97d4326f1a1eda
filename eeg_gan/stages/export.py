"""The averaged generator for other programs: TorchScript and ONNX, checked against the eager network."""

import contextlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eeg_gan.config import UserError
from eeg_gan.distributed import generator_at
from eeg_gan.models.stylegan2.generator import Generator
from eeg_gan.ops import _upfirdn2d, library
from eeg_gan.stages.generate_draw import check_psi
from eeg_gan.stages.loading import load_generator
from eeg_gan.training import checkpoint, runtime

OPSET = 18
BATCHES = (3, 1, 5)  # the first is traced; all are compared
log = logging.getLogger("eeg_gan")


@dataclass(frozen=True)
class Config:
    run_dir: str  # where generator.pt, generator.onnx and export.json go
    gan: str  # run_dir of gan
    formats: tuple[Literal["torchscript", "onnx"], ...] = ("torchscript",)  # onnx needs pip install eeg-gan[export]
    ema: int | None = None  # half-life of the average, among gan's ema_half_life and ema_more; null: the first
    psi: float = 1.0  # truncation towards the mean w of all conditions, fixed in the files; 1 is none
    cutoff: int | None = None  # truncation of so many first layers; null pulls all
    tolerance: float = 1e-3  # largest difference from the eager images in [-1, 1]; a grey level is 8e-3
    seed: int = 0  # of the inputs that are compared

    def __post_init__(self):
        if not self.formats or len(set(self.formats)) < len(self.formats):
            raise ValueError(f"formats names each format once; got {list(self.formats)}")
        check_psi(self.psi)
        if not self.tolerance > 0 or self.seed < 0 or (self.cutoff is not None and self.cutoff < 1):
            raise ValueError("tolerance is above 0, seed 0 or more, cutoff 1 or more")


class Exported(nn.Module):
    """z [N, z_dim], c [N, c_dim] -> image [N, C, H, W], with the network's own noise and a fixed truncation."""

    def __init__(self, generator: Generator, psi: float, cutoff: int | None):
        super().__init__()
        self.generator, self.psi, self.cutoff = generator, psi, cutoff

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        g = self.generator
        return g.synthesis(g.mapping(z, c, self.psi, self.cutoff), "const")


def run(config: Config) -> None:
    if "onnx" in config.formats:
        _check_onnx()
    with runtime.start("export", config) as rt:
        if rt.done:
            return
        generator, state = load_generator(config.gan, config.ema)
        if config.cutoff is not None and config.cutoff > generator.num_ws:
            raise UserError(f"cutoff={config.cutoff}, but {config.gan} has {generator.num_ws} layers; lower it")
        digest = checkpoint.tensors_digest(generator.state_dict())
        rt.inputs([checkpoint.chosen(config.gan).path / "state.json"], gan=digest)
        rt.start_log()
        found: dict[str, dict] = {}
        rt.on_main(lambda: found.update(_export(rt.run_dir, config, generator)))
        if rt.main:
            about = described(config, generator, state, digest)
            checkpoint.write_json(rt.run_dir / "export.json", {**about, "files": found})
        worst = ", ".join(f"{file} within {entry['max_abs_difference']:.1e}" for file, entry in found.items())
        rt.finish(f"{worst} of the eager images")


def described(config: Config, generator: Generator, state: dict, digest: str) -> dict[str, Any]:
    """What a program needs to use the files, and what a person must know of them."""
    inputs = {"z": {"shape": ["batch", generator.z_dim], "range": "standard normal"}}
    if generator.c_dim:
        inputs["c"] = {"shape": ["batch", generator.c_dim], "range": "the EEG feature, as embed writes it"}
    image = {"shape": ["batch", generator.img_channels, *generator.size], "range": [-1, 1], "order": "RGB"}
    return {
        "gan": config.gan,
        "gan_digest": digest,
        "ema": config.ema if config.ema is not None else state.get("ema", [None])[0],
        "dtype": "float32",
        "inputs": inputs,
        "outputs": {"image": {**image, "note": "values may leave the range a little: clip them"}},
        "condition_dim": generator.c_dim,
        "encoder_digest": state["encoder_digest"],
        "split_digest": state["data"]["split_digest"],
        "confounded": state["data"]["confounded"],
        "psi": config.psi,
        "cutoff": config.cutoff,
        "noise": "const",
        "tolerance": config.tolerance,
    }


@torch.no_grad()
def _export(run_dir: Path, config: Config, generator: Generator) -> dict[str, dict]:
    """Writes every format and compares it on other batch sizes than the traced one."""
    network = Exported(generator, config.psi, config.cutoff).eval()
    inputs = [draw_inputs(generator, n, config.seed + i) for i, n in enumerate(BATCHES)]
    wanted = [network(*own) for own in inputs]
    found = {}
    for name in config.formats:
        write, read, file = FORMATS[name]
        path = run_dir / f"partial-{file}"
        with _plain_operators():
            write(network, inputs[0], path)
        difference = compared(read(path), inputs, wanted)
        log.info("%s: largest difference from the eager images %.2e", file, difference)
        if not difference <= config.tolerance:
            path.unlink()
            raise UserError(
                f"{file} differs from the eager images by {difference:.2e}, more than tolerance={config.tolerance:g}, "
                "and was deleted; raise tolerance if that is near enough, or take another format"
            )
        size, digest = path.stat().st_size, checkpoint.file_digest(path)
        os.replace(path, run_dir / file)
        found[file] = {"format": name, "max_abs_difference": difference, "bytes": size, "sha256": digest}
    return found


def draw_inputs(generator: Generator, n: int, seed: int) -> tuple[Tensor, ...]:
    """z and, for a conditional network, unit conditions."""
    random = generator_at(seed, "export", 0)
    z, c = (torch.randn(n, dim, generator=random) for dim in (generator.z_dim, generator.c_dim))
    return (z, F.normalize(c)) if generator.c_dim else (z,)


def compared(network, inputs: list[tuple[Tensor, ...]], wanted: list[Tensor]) -> float:
    """The largest difference over all batches; not a number where there is one in an image."""
    differences = [(network(*own) - image).abs().max() for own, image in zip(inputs, wanted, strict=True)]
    return float(torch.stack(differences).max())


def write_torchscript(network: Exported, inputs: tuple[Tensor, ...], path: Path) -> None:
    torch.jit.save(torch.jit.trace(network, inputs, check_trace=False), str(path))


def write_onnx(network: Exported, inputs: tuple[Tensor, ...], path: Path) -> None:
    """By torch.export, so that the sizes of layers are numbers and the batch alone is free."""
    names = ["z", "c"][: len(inputs)]
    program = torch.export.export(network, inputs, dynamic_shapes=[{0: torch.export.Dim("batch")} for _ in inputs])
    named = {"input_names": names, "output_names": ["image"], "opset_version": OPSET}
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the exporter warns of kinds of operators that are not there
    try:
        torch.onnx.export(program, (), str(path), dynamo=True, verbose=False, external_data=False, **named)
    finally:
        logging.disable(before)


def read_torchscript(path: Path):
    return torch.jit.load(str(path))


def read_onnx(path: Path):
    """The file in ONNX Runtime where that is installed, else in onnx's own slow interpreter."""
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    else:
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(str(path))

    def network(*inputs: Tensor) -> Tensor:
        named = {name: x.numpy() for name, x in zip(("z", "c"), inputs, strict=False)}
        return torch.from_numpy(session.run(None, named)[0])

    return network


FORMATS = {  # name: how it is written, how it is read back, its file
    "torchscript": (write_torchscript, read_torchscript, "generator.pt"),
    "onnx": (write_onnx, read_onnx, "generator.onnx"),
}


@contextlib.contextmanager
def _plain_operators() -> Iterator[None]:
    """No compiled operator, and no matrices kept per size: one kept while tracing would be a tensor of the trace."""
    before, _upfirdn2d.MATRIX_MAX = _upfirdn2d.MATRIX_MAX, 0
    try:
        with library.twins(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of shapes that are constants here, and of formats that grow old
            yield
    finally:
        _upfirdn2d.MATRIX_MAX = before


def _check_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"formats=onnx needs {' and '.join(missing)}, not installed here; pip install 'eeg-gan[export]', or set "
            "formats=[torchscript]"
        )
