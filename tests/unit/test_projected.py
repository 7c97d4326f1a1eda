"""The projected discriminator: what it sees, how it judges, what moves and what never does."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils import parametrize

from eeg_gan import config as configs
from eeg_gan.augment.condition import Conditions
from eeg_gan.config import UserError
from eeg_gan.losses import adversarial
from eeg_gan.models.image_tower import TowerConfig, build_tower, tower_digest
from eeg_gan.models.projected import ProjectedConfig, ProjectedDiscriminator, resizing
from eeg_gan.stages import gan_steps

KINDS = ["timm:test_resnet", "timm:test_convnext", "timm:test_vit", "tiny"]


def discriminator(model="timm:test_resnet", resolution=16, c_dim=5, **keys):
    torch.manual_seed(0)
    keys = {"channels": 8, "image_size": 32 if model in KINDS[:2] else None, **keys}
    return ProjectedDiscriminator(build_tower(TowerConfig(model)), resolution, c_dim, **keys)


@pytest.mark.parametrize("model", KINDS)
def test_every_kind_of_tower_is_judged_at_several_depths(model):
    d = discriminator(model)
    x = (torch.rand(3, 3, 16, 16) * 2 - 1).requires_grad_(True)
    mixtures = d.mixtures(x)
    assert [m.shape[1] for m in mixtures] == [8, 16, 32, 64][: d.scales] and d.scales >= 3
    assert all(0.3 < m.square().mean().sqrt() < 3 for m in mixtures)
    verdicts = d(x, torch.randn(3, 5))
    assert all(v.shape[0] == 3 and v.ndim == 3 for v in verdicts)
    for verdict in verdicts:
        (gradient,) = torch.autograd.grad(verdict.sum(), x, retain_graph=True)
        assert gradient.flatten(1).norm(dim=1).min() > 0
    assert discriminator(model, scales=2).scales == 2


def test_transformers_are_read_at_spread_depths_and_others_at_the_last_map_of_each_size():
    assert discriminator("timm:test_vit").depths == [0, 2, 3, 5]
    assert discriminator("timm:test_resnet").depths == [1, 2, 3, 4]


def test_pictures_reach_the_tower_as_its_own_preprocessing_gives_them():
    d = discriminator("timm:test_vit", resolution=[16, 24])
    x = F.interpolate(torch.rand(2, 3, 4, 4), (16, 24), mode="bilinear")
    tower = d.tower
    whole = F.interpolate(x, tower.size, mode="bicubic", align_corners=False, antialias=True)
    torch.testing.assert_close(d._prepared(x * 2 - 1), (whole - tower.mean) / tower.std, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(resizing(24, 16) @ torch.ones(24), torch.ones(16))
    grey = discriminator(img_channels=1)
    flat = torch.rand(2, 1, 16, 16)
    assert grey.mixtures(flat)[0].equal(grey.mixtures(flat.repeat(1, 3, 1, 1))[0])


def test_verdicts_are_an_offset_and_a_projection():
    """Miyato & Koyama: the difference of two conditions' verdicts is the projection on their difference."""
    d = discriminator()
    x, a, b = torch.randn(2, 3, 16, 16), torch.randn(2, 5), torch.randn(2, 5)
    for judge, mixture, one, other in zip(d.judges, d.mixtures(x), d(x, a), d(x, b), strict=True):
        h = judge.layers(mixture)
        along = judge.projection(d.mapping(None, a) - d.mapping(None, b))
        expected = (h * along[:, :, None, None]).sum(1) / h.shape[1] ** 0.5
        torch.testing.assert_close(one - other, expected, rtol=1e-3, atol=1e-5)
    plain = discriminator(c_dim=0)
    assert plain.mapping is None and [v.shape for v in plain(x)] == [v.shape for v in d(x, a)]


def test_spectral_norms_are_one_and_only_refreshing_moves_them():
    d = discriminator()
    before = {name: value.clone() for name, value in d.state_dict().items()}
    d.train()
    d(torch.randn(2, 3, 16, 16), torch.randn(2, 5))
    assert all(value.equal(before[name]) for name, value in d.state_dict().items())
    for _ in range(200):
        d.refresh()
    weights = [m.weight for m in d.judges.modules() if parametrize.is_parametrized(m, "weight")]
    assert len(weights) >= 3 * d.scales
    for weight in weights:
        assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


def test_the_tower_is_neither_trained_nor_saved_but_moves_along():
    d, tower = discriminator(), build_tower(TowerConfig("timm:test_resnet"))
    assert d.digest == tower_digest(tower)
    d.requires_grad_(True)
    own = {id(p) for p in d.parameters()}
    assert not any(p.requires_grad or id(p) in own for p in d.tower.parameters())
    assert not any("trunk" in name for name in d.state_dict())
    assert {"across_channels.0", "across_scales.0"} <= d.state_dict().keys() - dict(d.named_parameters()).keys()
    d.double()
    assert next(d.tower.parameters()).dtype == torch.double
    assert d(torch.rand(1, 3, 16, 16).double(), torch.rand(1, 5).double())[0].dtype == torch.double


@pytest.mark.parametrize("model", ["timm:test_vit", "tiny"])
def test_gradient_penalties_pass_through_attention(model):
    d = discriminator(model, penalised=True)
    x = torch.rand(2, 3, 16, 16).requires_grad_(True)
    logits = torch.stack([v.mean((1, 2)) for v in d(x, torch.randn(2, 5))], 1)
    adversarial.r1_penalty(x, logits).backward()
    assert d.judges[0].verdict.parametrizations.weight.original.grad.norm() > 0


def test_hinge_losses_of_known_logits():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert adversarial.hinge_discriminator_loss(real, fake).item() == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3)
    assert adversarial.hinge_generator_loss(fake).item() == pytest.approx(2 / 3)


def config_of(**changes):
    projected = {"tower": {"model": "timm:test_resnet"}, "image_size": 32, "channels": 8, "untrained": True}
    values = {
        "run_dir": "r",
        "loader": {"index": "i"},
        "features": "f",
        "generator": {"z_dim": 6, "w_dim": 7, "channel_base": 128, "channel_max": 8},
        "discriminator": {"projected": {**projected, **changes.pop("projected", {})}},
        "batch": 8,
        "augment": {"mode": "none"},
        "ema_half_life": 100,
    }
    return configs.from_dict(gan_steps.Config, {**values, **changes}, "test")


@pytest.mark.parametrize(
    "projected, changes",
    [({}, {}), ({"loss": "logistic"}, {"r1_gamma": 0.1})],
    ids=["hinge", "logistic with R1"],
)
def test_the_game_is_learnt_by_both_sides(projected, changes):
    """The discriminator tells noise from flat pictures; then the generator lowers its loss before a fixed one."""
    config = config_of(projected=projected, **changes)
    assert config.r1_gamma == changes.get("r1_gamma", 0)
    players = gan_steps.build(config, 16, torch.eye(5), torch.device("cpu"))
    conditions, trials = Conditions(torch.eye(5), range(5), config.condition), torch.arange(8) % 5
    real = torch.linspace(-0.8, 0.8, 8)[:, None, None, None].expand(8, 3, 16, 16).contiguous()
    told, name = [], f"loss/D ({gan_steps.unit(config)})"
    for i in range(16):
        batch = gan_steps.Batch(config, players, conditions, 8 * i)
        told.append(gan_steps.step_discriminator(batch, real, conditions.features[trials])[name].item())
        if config.r1_gamma and i % 4 == 0:
            assert gan_steps.step_r1(batch, real, conditions.features[trials])["loss/R1 penalty (1)"] > 0
    assert told[-1] < 0.8 * told[0], told
    weights = [v.clone() for v in players.d.state_dict().values()]
    batch = gan_steps.Batch(config, players, conditions, 0)
    name = f"loss/G ({gan_steps.unit(config)})"
    lost = [gan_steps.step_generator(batch)[name].item() for _ in range(8)]
    assert lost[-1] < lost[0] - 0.1, lost
    assert all(a.equal(b) for a, b in zip(weights, players.d.state_dict().values(), strict=True))


def test_signs_are_means_over_places_of_every_scale():
    config = config_of()
    players = gan_steps.build(config, 16, torch.eye(5), torch.device("cpu"))
    a, b = torch.tensor([[[3.0, -1.0]], [[-3.0, 1.0]]]), torch.tensor([[[1.0]], [[1.0]]])
    d = players.d
    d.judges = d.judges[:2]
    assert gan_steps.leading(d, [(1.0, a), (1.0, b), (0.5, a)]).tolist() == [[1, 1], [-1, 1]]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"projected": {"untrained": False}}, "needs a pretrained network; set tower.pretrained"),
        ({"projected": {"tower": {"model": "tiny", "frozen": False}}}, "stays as it is"),
        ({"projected": {"scales": 0}}, "scales is 1 or more"),
        ({"projected": {"loss": "hing"}}, "did you mean hinge"),
        ({"transfer": {"run": "other", "freeze_d": 1}}, "frozen anyway"),
        ({"projected": {"twoer": {}}}, "did you mean discriminator.projected.tower"),
    ],
)
def test_configs_that_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        config_of(**changes)


def test_towers_that_cannot_be_looked_through_are_refused():
    with pytest.raises(UserError, match="leave projected.image_size out"):
        discriminator("tiny", image_size=48)
    with pytest.raises(UserError, match="not 4 channels"):
        discriminator(img_channels=4)
    assert ProjectedConfig(TowerConfig("hf-hub:org/model")).loss == "hinge"
