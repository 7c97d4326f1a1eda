import json

import pytest
import torch
from safetensors.torch import save_file

from eeg_gan.config import UserError
from eeg_gan.models.image_tower import TINY_TOWER, TowerConfig, build_tower, tower_digest, tower_state
from eeg_gan.torchvision_compat import load


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "small-vit.json"
    path.write_text(json.dumps(TINY_TOWER))
    return str(path)


@pytest.fixture
def images():
    return torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_tower_from_a_model_config_file(config_file, images):
    tower = build_tower(TowerConfig(model=config_file))
    assert tower.dim == 64 and tower.size == (32, 32) and not tower.training
    assert not any("text" in name or "transformer.token" in name for name in tower.state_dict())
    assert tower(images).shape == (2, 64)
    assert tower(torch.zeros(1, 3, 50, 70, dtype=torch.uint8)).shape == (1, 64)  # any size
    assert not tower(images).requires_grad
    tower.train()
    assert not tower.training


def test_tower_normalises_as_open_clip_does(config_file, images):
    tower = build_tower(TowerConfig(model=config_file))
    constants = load("open_clip")
    mean = torch.tensor(constants.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(constants.OPENAI_DATASET_STD).view(1, 3, 1, 1)
    torch.testing.assert_close(tower(images), tower.visual((images / 255.0 - mean) / std))


def test_local_file_round_trip(tmp_path, images):
    tower = build_tower(TowerConfig(model="tiny", frozen=False))
    tower(images).sum().backward()  # not frozen: it trains
    assert tower.training
    with torch.no_grad():
        next(tower.parameters()).add_(1.0)
    save_file(tower_state(tower), tmp_path / "tower.safetensors")
    again = build_tower(TowerConfig(model="tiny", pretrained=str(tmp_path / "tower.safetensors")))
    torch.testing.assert_close(again(images), tower(images))
    assert tower_digest(again) == tower_digest(tower)
    untrained = build_tower(TowerConfig(model="tiny"))
    assert tower_digest(untrained) != tower_digest(tower)
    torch.manual_seed(5)  # random weights are the same in every stage, whatever was drawn before
    assert tower_digest(build_tower(TowerConfig(model="tiny"))) == tower_digest(untrained)


def test_whole_open_clip_checkpoint_is_read_too(config_file, tmp_path, images):
    first = build_tower(TowerConfig(model=config_file))
    model = load("open_clip").create_model("small-vit")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "clip.safetensors")
    tower = build_tower(TowerConfig(model=config_file, pretrained=str(tmp_path / "clip.safetensors")))
    torch.testing.assert_close(tower(images), build_like(first, model)(images))


def build_like(tower, model):
    tower.visual.load_state_dict(model.visual.state_dict())
    return tower


def test_any_timm_network_is_a_tower(tmp_path, images):
    """Weights come from a file in timm's own words, with its classifier, or in ours."""
    timm = load("timm")
    torch.manual_seed(1)
    whole = timm.create_model("test_resnet", pretrained=False).eval()
    own = {name: value.contiguous() for name, value in whole.state_dict().items()}
    save_file(own, tmp_path / "timm.safetensors")
    torch.save(own, tmp_path / "timm.pth")
    tower = build_tower(TowerConfig("timm:test_resnet", str(tmp_path / "timm.safetensors")))
    large = torch.rand(2, 3, 160, 160) * 255
    expected = whole.forward_head(whole.forward_features((large / 255 - 0.5) / 0.5), pre_logits=True)
    torch.testing.assert_close(tower(large), expected)
    assert tower.dim == 96 and tower.size == (160, 160) and tower(images).shape == (2, 96)
    save_file(tower_state(tower), tmp_path / "own.safetensors")
    for file in ("timm.pth", "own.safetensors"):
        assert tower_digest(build_tower(TowerConfig("timm:test_resnet", str(tmp_path / file)))) == tower_digest(tower)
    assert tower_digest(build_tower(TowerConfig("timm:test_resnet"))) != tower_digest(tower)
    assert [m.shape[1:] for m in tower.maps(large[:1])][-1] == (96, 5, 5)


@pytest.mark.parametrize(
    "model, pretrained, said",
    [
        ("timm:test_resnot", None, "did you mean timm:test_resnet"),
        ("timm:resnet18.a1_in1k", None, "write model=timm:resnet18 and pretrained=a1_in1k"),
        ("timm:resnet18", "a9_in1k", "no such weights; its tags are .*a1_in1k"),
        ("timm:resnet18", "nowhere/r.safetensors", "no such weights file.*/resnet18.a1_in1k/resolve/main/model.saf"),
        ("timm:test_vit", "OTHER", "not the weights of timm:test_vit: .* of its tensors are not there"),
        ("timm:test_vit", "TEXT", "not the weights of timm:test_vit"),
    ],
)
def test_mistakes_with_timm_are_explained(tmp_path, model, pretrained, said):
    save_file({"conv1.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    (tmp_path / "text.pth").write_text("not tensors")
    files = {"OTHER": "other.safetensors", "TEXT": "text.pth"}
    pretrained = str(tmp_path / files[pretrained]) if pretrained in files else pretrained
    with pytest.raises(UserError, match=said):
        build_tower(TowerConfig(model, pretrained))


def test_timm_weights_that_cannot_be_downloaded_say_what_to_fetch(monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(load("timm.models._builder"), "load_state_dict_from_hf", offline)
    with pytest.raises(UserError, match="timm/resnet18.a1_in1k/resolve/main/model.safetensors and give it as"):
        build_tower(TowerConfig("timm:resnet18", "a1_in1k"))


def test_mistakes_are_explained(config_file, tmp_path):
    with pytest.raises(UserError, match="no such model"):
        build_tower(TowerConfig(model="ViT-Z-1"))
    with pytest.raises(UserError, match="not a readable open_clip model config"):
        build_tower(TowerConfig(model=str(tmp_path / "none.json")))
    (tmp_path / "half.json").write_text('{"embed_dim": 4}')
    with pytest.raises(UserError, match="missing: .*vision_cfg"):
        build_tower(TowerConfig(model=str(tmp_path / "half.json")))
    with pytest.raises(UserError, match="no such weights file"):
        build_tower(TowerConfig(model=config_file, pretrained=str(tmp_path / "none.safetensors")))
    laion = "CLIP-ViT-B-32-laion2B-s34B-b79K/resolve/main/open_clip_model.safetensors, and give their path"
    with pytest.raises(UserError, match=f"no such weights file .looked for {tmp_path}/none.pt.*{laion}"):
        build_tower(TowerConfig(model="ViT-B-32", pretrained=str(tmp_path / "none.pt")))
    with pytest.raises(UserError, match="did you mean ViT-B-32"):
        build_tower(TowerConfig(model="vit-b-32"))
    with pytest.raises(UserError, match="ViT-B-32 has no such weights; its tags are .*openai"):
        build_tower(TowerConfig(model="ViT-B-32", pretrained="opanai"))
    save_file({"visual.proj": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not the weights of this model"):
        build_tower(TowerConfig(model=config_file, pretrained=str(tmp_path / "other.safetensors")))


def test_weights_that_cannot_be_downloaded_say_what_to_fetch(monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(load("open_clip.factory"), "download_pretrained", offline)
    with pytest.raises(UserError, match=r"could not be downloaded.*and give it as pretrained=/path/to/\S+") as seen:
        build_tower(TowerConfig(model="ViT-B-32", pretrained="laion2b_s34b_b79k"))
    monkeypatch.setattr(load("open_clip.factory"), "download_pretrained_from_hf", offline)
    hub = "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    with pytest.raises(UserError, match="hf download laion/CLIP-ViT.*give the folder as model=local-dir:FOLDER"):
        build_tower(TowerConfig(model=hub))
    file = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K/resolve/main/open_clip_model.safetensors"
    assert f"https://huggingface.co/{file} and" in str(seen.value)
