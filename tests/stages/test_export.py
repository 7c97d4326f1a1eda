"""Export by its front door: the files give what the program gives, without it."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch
from conftest import debug
from safetensors.torch import save_file
from test_bad_input import refused

from eeg_gan import cli
from eeg_gan.models.stylegan2.generator import Generator
from eeg_gan.stages import export
from eeg_gan.stages.loading import load_generator

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
ALONE = """
import sys
import torch
from safetensors.torch import load_file
given = load_file(sys.argv[2])
image = torch.jit.load(sys.argv[1])(given["z"], given["c"])
assert not [name for name in sys.modules if name.startswith("eeg_gan")]
assert (image - given["image"]).abs().max() < 1e-4
"""


def words(runs, folder, *more):
    return ["export", debug("export"), f"gan={runs}/gan", f"run_dir={folder}", *more]


def test_torchscript_runs_in_a_process_that_knows_nothing_of_us(runs, tmp_path):
    assert cli.main(words(runs, tmp_path / "e", "psi=0.6", "cutoff=3", "ema=500")) == 0
    generator, state = load_generator(runs / "gan", 500)
    z, c = export.draw_inputs(generator, 7, 1)
    image = generator.synthesis(generator.mapping(z, c, 0.6, 3))
    save_file({"z": z, "c": c, "image": image.contiguous()}, tmp_path / "given.safetensors")
    command = [sys.executable, "-c", ALONE, str(tmp_path / "e" / "generator.pt"), str(tmp_path / "given.safetensors")]
    subprocess.run(command, check=True, timeout=120, cwd=tmp_path)
    about = json.loads((tmp_path / "e" / "export.json").read_text())
    assert about["condition_dim"] == generator.c_dim and about["inputs"]["z"]["shape"] == ["batch", generator.z_dim]
    assert about["encoder_digest"] == state["encoder_digest"] and about["confounded"] is False
    assert about["outputs"]["image"]["shape"] == ["batch", 3, 16, 16]
    assert 0 <= about["files"]["generator.pt"]["max_abs_difference"] < 1e-4


@pytest.mark.parametrize(
    "more",
    [
        {"architecture": "residual", "clamp": 256.0},
        {"architecture": "orig", "resolution": [16, 24], "img_channels": 1},
        {"conditioning": "transitional", "whiten": True, "resolution": 80},
    ],
    ids=["residual", "orig", "transitional"],
)
def test_every_architecture_is_traced_for_any_batch(tmp_path, more):
    shape = {"z_dim": 8, "c_dim": 4, "w_dim": 8, "resolution": 32, "channel_base": 64, "channel_max": 8}
    generator = Generator(**{**shape, **more}).eval().requires_grad_(False)
    network = export.Exported(generator, 0.5, 2)
    inputs = [export.draw_inputs(generator, n, n) for n in export.BATCHES]
    wanted = [network(*own) for own in inputs]
    with export._plain_operators():
        export.write_torchscript(network, inputs[0], tmp_path / "g.pt")
    assert export.compared(export.read_torchscript(tmp_path / "g.pt"), inputs, wanted) < 1e-4
    torch.testing.assert_close(network(*inputs[0]), wanted[0], msg="what was traced leaves nothing behind")


def test_a_file_beyond_the_tolerance_is_not_kept(capsys, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "compared", lambda *_: float("nan"))
    assert "more than tolerance" in refused(capsys, words(runs, tmp_path / "e"))
    assert not list((tmp_path / "e").glob("*.pt"))


def test_onnx_says_what_it_needs(capsys, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    assert "eeg-gan[export]" in refused(capsys, words(runs, tmp_path / "e", "formats=[torchscript,onnx]"))
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    "more, said",
    [
        (["formats=[]"], "each format once"),
        (["formats=onnx"], "expected a list, such as [onnx]"),
        (["tolerance=0"], "tolerance is above 0"),
        (["cutoff=99"], "cutoff=99, but"),
        (["psi=7"], "usually 0.5 to 1"),
    ],
)
def test_export_refuses(capsys, runs, tmp_path, more, said):
    assert said in refused(capsys, words(runs, tmp_path / "e", *more))


@pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript and onnxruntime are an extra")
def test_onnx_gives_the_same_for_every_batch(runs, tmp_path):
    assert cli.main(words(runs, tmp_path / "e", "formats=[onnx]", "psi=0.6")) == 0
    about = json.loads((tmp_path / "e" / "export.json").read_text())
    assert about["files"]["generator.onnx"]["max_abs_difference"] < 1e-4
    generator, _ = load_generator(runs / "gan")
    z, c = export.draw_inputs(generator, 4, 9)
    found = export.read_onnx(tmp_path / "e" / "generator.onnx")(z, c)
    torch.testing.assert_close(found, generator(z, c, psi=0.6), atol=1e-4, rtol=0)
