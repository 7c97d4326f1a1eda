"""The training step: cuts of a batch change nothing, presets are the published ones, and what conditions go through."""

import math

import pytest
import torch

from eeg_gan import config as configs
from eeg_gan.augment.condition import ConditionConfig, Conditions, weight_at
from eeg_gan.config import UserError
from eeg_gan.distributed import own_part
from eeg_gan.stages import gan, gan_presets, gan_steps
from eeg_gan.stages.gan_config import check_groups
from eeg_gan.training.guard import Guard, GuardConfig

BASE = {
    "run_dir": "r",
    "loader": {"index": "i"},
    "features": "f",
    "generator": {"z_dim": 6, "w_dim": 7, "channel_base": 128, "channel_max": 6},
    "discriminator": {"channel_base": 128, "channel_max": 6, "mbstd_group": 2},
    "batch": 8,
    "r1_every": 2,
    "path_length": {"weight": 2.0, "every": 2},
    "style_mixing": 0.9,
    "ema_half_life": 100,
    "ema_more": [10],
    "ema_ramp": None,
    "augment": {"p": 0.5, "every": 2, "speed_kimg": 0.5},
    "condition": {"noise": 0.2, "swap": 0.3, "drop": 0.2},
}
TRANSITION = {
    "generator": {**BASE["generator"], "conditioning": "transitional", "whiten": True},
    "discriminator": {**BASE["discriminator"], "two_heads": True},
    "condition": {"transition": [16, 80]},
}
SEEN = {"tower": {"model": "timm:test_resnet"}, "image_size": 32, "channels": 8, "untrained": True}
PROJECTED = {
    "discriminator": {"projected": SEEN, "two_heads": True},
    "generator": TRANSITION["generator"],
    "condition": TRANSITION["condition"],
    "r1_gamma": 0.1,
}


def config_of(**changes):
    return configs.from_dict(gan.Config, {**BASE, **changes}, "test")


def trained(config, steps=20):
    """The networks after some batches, in double precision, on data made here."""
    torch.set_default_dtype(torch.float64)
    try:
        generator = torch.Generator().manual_seed(5)
        features = torch.nn.functional.normalize(torch.randn(12, 5, generator=generator), dim=1)
        real = torch.rand(12, 3, 16, 16, generator=generator) * 2 - 1
        conditions = Conditions(features, [i // 3 for i in range(12)], config.condition)
        players, signs = gan_steps.build(config, 16, features, torch.device("cpu")), []
        for number in range(steps):
            images = number * config.batch
            trials = torch.arange(images, images + config.batch) % 12
            batch, part = gan_steps.Batch(config, players, conditions, images), own_part(config.batch)
            own, c = real[trials[part]], batch.real_conditions(trials)[part]
            gan_steps.step_discriminator(batch, own, c)
            if number % config.r1_every == 0:
                gan_steps.step_r1(batch, own, c)
            gan_steps.step_generator(batch)
            if config.path_length.weight and number % config.path_length.every == 0:
                gan_steps.step_path_length(batch)
            gan_steps.update_averages(players, config, images)
            if (number + 1) % config.augment.every == 0:
                signs.append(players.augment.state_dict()["sign_sum"])
                players.augment.update(config.batch * config.augment.every)
        tensors = {f"{a}.{b}": v for a, n in players.networks().items() for b, v in n.state_dict().items()}
        p = torch.tensor(players.augment.p)
        return {**tensors, "p": p, "signs": torch.tensor(signs), "path": players.path_mean}
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "changes, size, steps",
    [({}, 4, 20), (TRANSITION, 2, 20), (PROJECTED, 2, 6)],
    ids=["concat, 2x4", "transitional, 4x2", "projected, 4x2"],
)
def test_micro_batches_change_nothing(changes, size, steps):
    """With path lengths, mixing, two averages, disturbed conditions, and an ADA whose p moves."""
    whole, cut = trained(config_of(**changes), steps), trained(config_of(**changes, micro_batch=size), steps)
    assert 0 < abs(whole["p"] - 0.5) < 0.5 and whole["path"] > 0
    torch.testing.assert_close(cut, whole, rtol=1e-6, atol=1e-9)
    assert not torch.allclose(whole["g.constant"], whole["average.constant"])
    assert not torch.allclose(whole["average-10.constant"], whole["average.constant"])


def test_presets_are_the_published_numbers():
    expected = {  # resolution, GPUs: batch, gamma, EMA kimg
        (128, 1): (32, 0.1024, 10),
        (128, 8): (64, 0.0512, 20),
        (256, 1): (16, 0.8192, 5),
        (256, 8): (64, 0.2048, 20),
        (512, 8): (64, 0.8192, 20),
        (1024, 8): (32, 6.5536, 10),
    }
    for (resolution, gpus), (batch, gamma, ema) in expected.items():
        keys = gan_presets.preset("auto", resolution, gpus)
        assert keys["batch"] == batch and keys["r1_gamma"] == pytest.approx(gamma)
        assert keys["ema_half_life"] == ema * 1000 and keys["discriminator"]["mbstd_group"] == 4
        assert keys["generator"]["channel_base"] == (32768 if resolution >= 512 else 16384)
        assert keys["g_optim"]["lr"] == (0.002 if resolution >= 1024 else 0.0025) and keys["ema_ramp"] == 0.05
    fixed = {  # kimg, batch, mbstd group, channel_base, lr of D, gamma, EMA kimg, ramp, mapping layers of G
        "stylegan2": (25_000, 32, 4, 32768, 0.002, 10, 10, None, 8),
        "paper256": (25_000, 64, 8, 16384, 0.0025, 1, 20, None, 8),
        "paper512": (25_000, 64, 8, 32768, 0.0025, 0.5, 20, None, 8),
        "paper1024": (25_000, 32, 4, 32768, 0.002, 2, 10, None, 8),
        "cifar": (100_000, 64, 32, 32768, 0.0025, 0.01, 500, 0.05, 2),
        "wacv2024": (5_500, 64, 32, 32768, 0.0025, 0.01, 500, 0.05, 2),
    }
    needed = {"run_dir": "r", "loader": {"index": "i"}, "features": "f"}
    for name, (kimg, batch, group, base, lr, gamma, ema, ramp, layers) in fixed.items():
        config = configs.from_dict(gan.Config, {**needed, "preset": name}, "t")
        g, d = config.generator, config.discriminator
        assert (config.total_images, config.batch, d.mbstd_group) == (kimg * 1000, batch, group)
        assert (config.d_optim.lr, config.r1_gamma, config.r1_every, d.map_layers) == (lr, gamma, 16, 8)
        assert (config.ema_half_life, config.ema_ramp, g.map_layers) == (ema * 1000, ramp, layers)
        assert g.channel_base == d.channel_base == base and g.channel_max == d.channel_max == 512
        assert g.z_dim == g.w_dim == 512 and g.map_lr == d.map_lr == 0.01 and g.clamp == d.clamp == 256
        assert (config.augment.mode, config.augment.target, config.augment.speed_kimg) == ("ada", 0.6, 500)
        assert (config.augment.every, config.augment.p, config.augment.p_max) == (4, 0, 0.8)
        assert (config.path_length.every, config.path_length.decay, config.path_length.shrink) == (4, 0.01, 2)
        small = name in ("cifar", "wacv2024")
        assert d.architecture == ("orig" if small else "residual") and g.architecture == "skip"
        assert (config.path_length.weight, config.style_mixing) == ((0, 0) if small else (2, 0.9))
        assert config.g_optim.lr == pytest.approx(lr * (0.8 if small else 1)) and config.half_levels == 4
    wacv = configs.from_dict(gan.Config, {**needed, "preset": "wacv2024"}, "t")
    assert (wacv.batch, wacv.r1_gamma, wacv.total_images, wacv.augment.pipe) == (64, 0.01, 5_500_000, "bgcfnc")
    assert wacv.g_optim.lr == pytest.approx(0.0025 * 4 / 5) and wacv.g_optim.beta2 == pytest.approx(0.99**0.8)
    assert wacv.discriminator.architecture == "orig" and wacv.path_length.weight == wacv.style_mixing == 0
    over = configs.from_dict(gan.Config, {**needed, "preset": "cifar", "batch": 32}, "t")
    assert over.batch == 32 and over.r1_gamma == 0.01
    assert configs.from_dict(gan.Config, configs.to_dict(over), "t") == over
    with pytest.raises(UserError, match="add resolution=128"):
        config_of(preset="auto")
    assert {*fixed, "auto"} == set(gan_presets.NAMES)
    assert configs.from_dict(gan.Config, {**needed, "preset": "auto", "resolution": 256}, "t").path_length.weight == 2


def test_lazy_regularisation_is_corrected_for():
    players = gan_steps.build(config_of(), 16, torch.eye(5), torch.device("cpu"))
    g, d = players.g_optimiser.param_groups[0], players.d_optimiser.param_groups[0]
    assert g["lr"] == pytest.approx(2.5e-3 * 2 / 3) and d["betas"][1] == pytest.approx(0.99 ** (2 / 3))
    none = config_of(path_length={"weight": 0.0})
    assert gan_steps.build(none, 16, torch.eye(5), torch.device("cpu")).g_optimiser.param_groups[0]["lr"] == 2.5e-3


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"micro_batch": 3}, "micro_batch=3 must divide the 8 images .* choose 2, 4, 8"),
        ({"discriminator": {"mbstd_group": 3}}, "set batch to 6 or 9, or mbstd_group to 1, 2, 4, 8"),
        ({"condition": {"transition": [0, 10]}}, "belong together"),
        ({"condition": {"transition": [10, 10]}}, "start below end"),
        ({"precision": "float16"}, "generator.clamp=256"),
        ({"ema_more": [100]}, "different counts"),
        ({"path_length": {"weight": 2.0, "shrink": 3}}, "does not divide the 8 images of a process; choose 1, 2, 4, 8"),
        ({"style_mixing": 9}, "lies in \\[0, 1\\]; got 9"),
        ({"preset": "cifra"}, "did you mean cifar"),
        ({"transfer": {"freeze_d": 1}}, "needs that too"),
    ],
)
def test_configs_that_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        config_of(**changes)


def test_every_process_gets_whole_groups():
    check_groups(config_of(), 4)
    with pytest.raises(UserError, match="batch=8 does not give each of 3 processes .* set batch to 6 or 12"):
        check_groups(config_of(), 3)
    with pytest.raises(UserError, match="micro_batch=4 must divide the 2 images of a process .* choose 2"):
        check_groups(config_of(micro_batch=4), 4)
    with pytest.raises(UserError, match="shrink=4 does not divide the 2 images of a process; choose 1, 2"):
        check_groups(config_of(path_length={"weight": 2.0, "shrink": 4}), 4)
    check_groups(config_of(path_length={"shrink": 4}), 4)  # without path lengths there is nothing to divide


def test_the_next_smaller_micro_batch_is_the_cure_for_too_little_memory():
    assert "set micro_batch=4," in config_of().with_less_memory(1)
    assert "set micro_batch=2," in config_of(micro_batch=4).with_less_memory(1)
    assert "set micro_batch=2," in config_of().with_less_memory(2)
    assert "start more processes" in config_of().with_less_memory(4)


def test_conditions_are_moved_exchanged_and_dropped():
    features, pictures = torch.eye(6), [0, 0, 0, 1, 1, 2]
    trials = torch.tensor([0, 3, 5] * 200)

    def drawn(**keys):
        return Conditions(features, pictures, ConditionConfig(**keys)).of(trials, torch.Generator().manual_seed(0))

    assert drawn().equal(features[trials])
    swapped = drawn(swap=1.0).argmax(dim=1)
    assert {tuple(sorted(set(swapped[trials == t].tolist()))) for t in (0, 3, 5)} == {(0, 1, 2), (3, 4), (5,)}
    dropped = drawn(drop=0.25)
    assert 0.15 < (dropped == 0).all(dim=1).float().mean() < 0.35
    noisy = drawn(noise=0.3)
    torch.testing.assert_close(noisy.norm(dim=1), torch.ones(600))
    cosine = (noisy * features[trials]).sum(dim=1).mean()
    assert cosine.item() == pytest.approx(1 / math.sqrt(1 + 0.09), abs=0.02)
    weights = [weight_at(i, ConditionConfig(transition=(10, 20))) for i in (0, 10, 15, 20, 99)]
    assert weights == [0, 0, 0.5, 1, 1] and weight_at(0, ConditionConfig()) == 1


def test_whitened_conditions_and_none():
    torch.manual_seed(0)
    features = torch.randn(500, 3) * torch.tensor([1.0, 0.1, 1e-6]) + 2
    mapping = gan_steps.Generator(4, 3, 8, 16, whiten=True, channel_max=4).mapping_network
    mapping.fit_whitening(features)
    white = (features - mapping.c_mean) @ mapping.c_whitening
    assert sorted(white.var(dim=0).tolist())[1:] == pytest.approx([1, 1], abs=0.02) and white.var(dim=0).min() < 1e-6
    assert mapping.embed_condition(torch.zeros(2, 3)).eq(0).all()
    assert mapping.embed_condition(features[:2]).square().mean(dim=1).tolist() == pytest.approx([1, 1])


def test_steps_that_are_not_finite_are_left_out_and_counted():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.Adam([parameter], lr=0.1, fused=True)
    guard = Guard(GuardConfig(bad_steps=2))
    for value in (1.0, math.nan, 2.0, math.inf):
        parameter.grad = torch.full((3,), value)
        guard.step(optimiser)
    assert parameter.detach().isfinite().all() and guard.must_go_back() and guard.total == 2
    assert optimiser.state[parameter]["step"] == 2
    assert not guard.must_go_back()
    for _ in range(guard.config.rollbacks):
        guard.go_back(100, 50)
    with pytest.raises(UserError, match="diverged.*lower g_optim.lr"):
        guard.go_back(100, 50)
    again = Guard(guard.config)
    again.load_state_dict(guard.state_dict())
    assert again.state_dict() == guard.state_dict()


def test_frozen_levels_do_not_move():
    config = config_of(transfer={"run": "other", "freeze_d": 1})
    players = gan_steps.build(config, 16, torch.eye(5), torch.device("cpu"))
    gan_steps.train_discriminator(players, config)
    before = {name: value.clone() for name, value in players.d.named_parameters()}
    batch = gan_steps.Batch(config, players, Conditions(torch.eye(5), range(5), config.condition), 0)
    gan_steps.step_generator(batch)
    gan_steps.step_discriminator(batch, torch.rand(8, 3, 16, 16), torch.eye(5)[[0, 1, 2, 3, 4, 0, 1, 2]])
    same = {name for name, value in players.d.named_parameters() if value.equal(before[name])}
    assert same == {name for name in before if name.startswith(("from_rgb.0", "blocks.0"))}
