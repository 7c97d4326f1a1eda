"""The projected discriminator by the front door: a tower from a local file, exact resume, what is kept and refused."""

import torch
from conftest import ROOT, commands, debug
from safetensors.torch import save_file
from test_bad_input import refused
from test_resume import state_of

from eeg_gan import cli
from eeg_gan import config as configs
from eeg_gan.models.image_tower import TowerConfig, build_tower, tower_digest, tower_state
from eeg_gan.stages import gan
from eeg_gan.training import checkpoint
from eeg_gan.training.log import read_stats


def tower_file(path, seed=1):
    """timm's small ResNet of random weights, other than those that it has without a file."""
    tower = build_tower(TowerConfig("timm:test_resnet", frozen=False))
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in tower.parameters():
            p.add_(0.1 * torch.randn_like(p) * p.std().nan_to_num())
    save_file(tower_state(tower), path)
    return tower_digest(tower)


def words(runs, folder, file, *more):
    tower = f"discriminator.projected={{tower: {{model: 'timm:test_resnet', pretrained: {file}}}, image_size: 32, "
    tower += "channels: 8}"
    given = ["gan", debug("gan"), f"run_dir={folder}", *commands(runs)["gan"], tower]
    return [*given, "evaluate.every=null", "augment.pipe=bg", *more]


def test_a_projected_run_goes_on_bit_for_bit_and_draws(tmp_path, runs):
    digest = tower_file(tmp_path / "t.safetensors")
    assert cli.main(words(runs, tmp_path / "whole", tmp_path / "t.safetensors", "total_images=96")) == 0
    cut = words(runs, tmp_path / "cut", tmp_path / "t.safetensors", "total_images=96")
    assert cli.main([*cut, "stop_after=48"]) == 75
    assert cli.main(cut) == 0
    assert state_of(tmp_path / "cut") == state_of(tmp_path / "whole")
    found = checkpoint.newest(tmp_path / "whole")
    assert found.state["tower"] == digest and not any("trunk" in name for name in found.tensors["d"])
    row = read_stats(tmp_path / "whole")[-1]
    assert row["gradient/G (norm)"] > 0 and row["gradient/D (norm)"] > 0 and "loss/R1 penalty (1)" not in row
    assert 0 < row["loss/D (1)"] < 16 and -1 <= row["sign/real (-1 to 1)"] <= 1
    given = [f"gan={tmp_path}/whole", f"features={runs}/embed", f"run_dir={tmp_path}/i"]
    assert cli.main(["generate", debug("generate"), *given]) == 0


def test_another_tower_is_refused_on_resume_and_not_transferred(capsys, tmp_path, runs, caplog):
    file = tmp_path / "t.safetensors"
    tower_file(file)
    common = words(runs, tmp_path / "g", file, "total_images=32", "checkpoint_every=16")
    assert cli.main([*common, "stop_after=16"]) == 75
    more = ["total_images=16", f"transfer.run={tmp_path}/g"]
    assert cli.main(words(runs, tmp_path / "same", file, *more)) == 0
    assert "d: 0 of" not in caplog.text
    tower_file(file, seed=2)
    assert "made from other inputs (tower: " in refused(capsys, common)
    assert cli.main(words(runs, tmp_path / "other", file, *more)) == 0
    assert "d: 0 of" in caplog.text


def test_what_cannot_be_projected_is_refused(capsys, tmp_path, runs):
    said = refused(capsys, words(runs, tmp_path / "g", tmp_path / "none.safetensors"))
    assert "no such weights file" in said
    (tmp_path / "t.safetensors").write_text("text")
    assert "not a readable safetensors file" in refused(capsys, words(runs, tmp_path / "h", tmp_path / "t.safetensors"))


def test_the_example_has_no_penalty_unless_it_is_asked_for():
    path = ROOT / "configs" / "gan" / "projected.yaml"
    assert configs.load(gan.Config, path).r1_gamma == 0
    assert configs.load(gan.Config, path, ["r1_gamma=0.1"]).r1_gamma == 0.1
    assert configs.load(gan.Config, path, ["preset=cifar", "resolution=32"]).r1_gamma == 0
    assert configs.load(gan.Config, debug("gan")).r1_gamma == 0.1
