"""A tower read at any layer gives what the network itself holds there."""

import pytest
import torch
import torch.nn.functional as F

from eeg_gan.config import UserError
from eeg_gan.models.image_tower import TowerConfig, build_tower, tower_digest
from eeg_gan.models.tower_layer import blocks


@pytest.fixture(scope="module")
def images():
    return torch.randint(256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def normalised(tower, images):
    return (F.interpolate(images.float(), tower.size) / 255 - tower.mean) / tower.std


def output_of(module, tower, images):
    kept = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    tower(images)
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("model", ["tiny", "timm:test_vit", "timm:test_resnet"])
def test_a_block_by_number_is_what_the_library_calls_that_block(model, images):
    whole = build_tower(TowerConfig(model))
    images = F.interpolate(images.float(), whole.size).to(torch.uint8)
    maps = whole.visual.forward_intermediates(
        normalised(whole, images), normalize_intermediates=False, intermediates_only=True
    )["image_intermediates"]
    n = len(blocks(whole.visual))
    for number in (0, -1):
        tower = build_tower(TowerConfig(model, layer=number, pool="mean"))
        if model == "timm:test_resnet":  # a stage's output is the map; a transformer's has the class token beside it
            expected = maps[-n:][number].mean((2, 3))
            torch.testing.assert_close(tower(images), F.layer_norm(expected, expected.shape[1:]))
        else:
            tokens = output_of(blocks(whole.visual)[number], whole, images)
            patches = tokens[:, -maps[0].shape[2] * maps[0].shape[3] :].transpose(1, 2)
            torch.testing.assert_close(patches.reshape(maps[number].shape), maps[number])
            expected = tokens.mean(1)
            torch.testing.assert_close(tower(images), F.layer_norm(expected, expected.shape[1:]))
            first = build_tower(TowerConfig(model, layer=number, pool="cls"))
            torch.testing.assert_close(first(images), F.layer_norm(tokens[:, 0], expected.shape[1:]))
        assert tower.dim == tower(images).shape[1] and not tower.training


def test_a_layer_by_name_and_its_digest(images):
    by_number = build_tower(TowerConfig("tiny", layer=1))
    by_name = build_tower(TowerConfig("tiny", layer="transformer.resblocks.1"))
    torch.testing.assert_close(by_name(images), by_number(images))
    digests = [tower_digest(build_tower(TowerConfig("tiny", layer=layer))) for layer in (None, 0, 1)]
    assert len({*digests, tower_digest(build_tower(TowerConfig("tiny", layer=1, pool="cls")))}) == 4
    assert tower_digest(by_name) == tower_digest(by_number) == digests[2]
    assert build_tower(TowerConfig("tiny", layer="ln_pre")).dim == 96
    assert build_tower(TowerConfig("tiny")).state_dict().keys() == by_name.state_dict().keys()


def test_what_lies_behind_a_layer_does_not_learn(images):
    """Distributed training demands a gradient of every parameter that asks for one."""
    tower = build_tower(TowerConfig("tiny", frozen=False, layer=1))
    assert tower.training
    learnt = {name for name, p in tower.named_parameters() if p.requires_grad}
    assert any("resblocks.1" in name for name in learnt) and not any("resblocks.2" in name for name in learnt)
    assert "visual.proj" not in learnt and "visual.conv1.weight" in learnt
    tower(images).square().sum().backward()
    assert all(p.grad is not None for name, p in tower.named_parameters() if name in learnt)


@pytest.mark.parametrize(
    "config, said",
    [
        (TowerConfig("tiny", layer=3), "no such block; it has 3 blocks"),
        (TowerConfig("tiny", layer="transformer.resblock.1"), "near it are transformer.resblocks.1"),
        (TowerConfig("timm:test_resnet", layer=0, pool="cls"), "set tower.pool=mean"),
    ],
)
def test_mistakes_are_explained(config, said):
    with pytest.raises(UserError, match=said):
        build_tower(config)
