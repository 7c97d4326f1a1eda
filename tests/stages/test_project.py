"""Projection by its front door: an image of the generator's own comes back; a stopped run goes on bit for bit."""

import json

import numpy as np
import pytest
import torch
from conftest import debug
from PIL import Image
from safetensors.torch import load_file
from test_bad_input import refused

from eeg_gan import cli
from eeg_gan.models.image_tower import TowerConfig
from eeg_gan.stages import project
from eeg_gan.stages.loading import load_generator, to_uint8
from eeg_gan.stages.project_distance import build_distance, noise_correlation, normalise_noise, tower_layers
from eeg_gan.training.log import read_stats


def words(runs, folder, *more):
    given = [f"gan={runs}/gan", f"features={runs}/embed", f"loader.index={runs}/prepare/index.json"]
    return ["project", debug("project"), *given, f"run_dir={folder}", *more]


def test_a_stopped_projection_goes_on_bit_for_bit(runs, tmp_path):
    assert cli.main(words(runs, tmp_path / "a")) == 0
    assert cli.main(words(runs, tmp_path / "b", "stop_after=13")) == 75
    assert cli.main(words(runs, tmp_path / "b")) == 0
    whole, parts = (load_file(tmp_path / name / "w.safetensors") for name in "ab")
    assert whole.keys() == parts.keys() and all(whole[name].equal(parts[name]) for name in whole)
    rows = read_stats(tmp_path / "a")
    assert [row["images"] for row in rows] == [10, 20, 30] and rows[-1]["loss/pixels (1)"] < rows[0]["loss/pixels (1)"]
    assert (tmp_path / "a" / "comparison.png").exists()
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert record["reads"] == {"train": 1, "val": 1} and f"{runs}/prepare/index.json" in record["files"]


def test_an_image_of_the_generator_is_found_again(runs, tmp_path):
    generator, _ = load_generator(runs / "gan")
    with torch.no_grad():
        random = torch.Generator().manual_seed(5)
        z, c = (torch.randn(1, n, generator=random) for n in (generator.z_dim, generator.c_dim))
        image = to_uint8(generator(z, c / c.norm(), noise="none"))[0]
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "own.png")
    more = ["loader=null", f"image={tmp_path}/own.png", "detector=null", "steps=200", "log_every=200"]
    command = [word for word in words(runs, tmp_path / "p", *more) if not word.startswith("loader.index")]
    assert cli.main(command) == 0
    found = json.loads((tmp_path / "p" / "projection.json").read_text())
    assert found["psnr_db"] > 25, found
    assert json.loads((tmp_path / "p" / "run.json").read_text())["files"][f"{tmp_path}/own.png"]
    saved = load_file(tmp_path / "p" / "w.safetensors")
    noise = [saved[f"noise.{i}"] for i in range(len(generator.convs))]
    again = to_uint8(generator.synthesis(saved["ws"][None], noise))[0]
    stored = torch.from_numpy(np.array(Image.open(tmp_path / "p" / "projected.png"))).permute(2, 0, 1)
    assert (again.int() - stored.int()).abs().max() <= 1, "what is saved gives the picture back"
    assert all(abs(float(n.mean())) < 1e-5 and abs(float(n.square().mean()) - 1) < 1e-4 for n in noise)


@pytest.mark.parametrize(
    "more, said",
    [
        (["image=x.png"], "give either image"),
        (["tower.model=tiny"], "one perceptual distance"),
        (["detector=null", "pixel_weight=0"], "nothing compares"),
        (["key=nobody"], "has no trial nobody"),
        (["split=test"], "split"),
        (["detector={name: inception}"], "passes no gradient"),
    ],
)
def test_project_refuses(capsys, runs, tmp_path, more, said):
    assert said in refused(capsys, words(runs, tmp_path / "p", *more))


def test_distances_pass_gradients_and_are_zero_at_the_target():
    target = torch.randint(0, 256, (1, 3, 16, 16)).float()
    classifier = project.DetectorConfig(untrained=True, n_classes=3, image_size=16)
    for distance in (build_distance(classifier, None, target), build_distance(None, TowerConfig("tiny"), target)):
        assert distance(target) == 0
        other = (255 - target).requires_grad_()
        distance(other).backward()
        assert other.grad.abs().max() > 0
    stages = build_distance(None, TowerConfig("timm:test_resnet"), target)
    assert [m.ndim for m in stages.target] == [4, 4, 4, 4, 2] and stages(target) == 0 < stages(255 - target)
    assert tower_layers(distance.network) == [] and distance.target[0].shape[0] == 1
    assert build_distance(None, None, target)(target) == 0


def test_a_tower_is_compared_in_its_blocks():
    class Visual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = torch.nn.Module()
            self.visual.transformer = torch.nn.Module()
            self.visual.transformer.resblocks = torch.nn.ModuleList([torch.nn.Identity() for _ in range(12)])

    blocks = "visual.transformer.resblocks"
    assert tower_layers(Visual()) == [f"{blocks}.{i}" for i in (2, 5, 8, 11)]


def test_noise_that_hides_a_picture_is_seen():
    flat = [torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))]
    picture = [torch.ones(1, 1, 32, 32)]
    assert noise_correlation(flat) < 0.1 < noise_correlation(picture)
    # by hand, one scale: rows 1 -1 1 -1 .. correlate with -1 along x and 1 along y
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 1, 8, 8).clone()
    torch.testing.assert_close(noise_correlation([stripes]), torch.tensor(2.0))
    noise = [torch.randn(1, 1, 8, 8) * 3 + 1]
    normalise_noise(noise)
    assert abs(noise[0].mean()) < 1e-6 and abs(noise[0].square().mean() - 1) < 1e-5


def test_the_schedules_are_the_papers():
    config = project.Config("r", "g", "f", image="x")
    rates = [project.learning_rate(step, config) for step in (0, 25, 50, 700, 875, 999)]
    assert rates[:4] == pytest.approx([0, 0.05, 0.1, 0.1]) and rates[4] == pytest.approx(0.05) and rates[5] < 1e-5
    latent = torch.nn.Module()
    latent.w = torch.zeros(1, 4096)
    deviations = [float(project.perturbation(step, latent, 2.0, config).std()) for step in (0, 375, 750)]
    assert deviations == pytest.approx([0.1, 0.025, 0], rel=0.05)
