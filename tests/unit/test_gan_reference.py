"""Figures of the training step derived again in float64: NumPy loops, and slopes from differences, not autograd."""

import numpy as np
import pytest
import torch
from test_gan_steps import TRANSITION, config_of

from eeg_gan.augment.condition import Conditions
from eeg_gan.losses.adversarial import path_length
from eeg_gan.models.stylegan2 import layers
from eeg_gan.ops import setup_filter
from eeg_gan.stages import gan_steps

STEP = 1e-5


@pytest.fixture(autouse=True)
def doubles():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def correlated(image, taps):
    """[C, H, W] with [C, k, k] on zeros outside, at equal size: one number per place, tap by tap."""
    c, height, width = image.shape
    reach = taps.shape[1] // 2
    padded = np.zeros((c, height + 2 * reach, width + 2 * reach))
    padded[:, reach : reach + height, reach : reach + width] = image
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            out[y, x] = (padded[:, y : y + taps.shape[1], x : x + taps.shape[2]] * taps).sum()
    return out


def doubled(image, taps):
    """[C, H, W] -> [2H, 2W]: each pixel spreads its taps over the finer grid, then [1, 3, 3, 1] / 8 along both axes."""
    _, height, width = image.shape
    spread = np.zeros((2 * height + 3, 2 * width + 3))
    for y in range(height):
        for x in range(width):
            spread[2 * y + 1 : 2 * y + 4, 2 * x + 1 : 2 * x + 4] += np.einsum("c,cij->ij", image[:, y, x], taps)
    low_pass = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16  # unit gain on four times as many pixels
    rows = [[(spread[y : y + 4, x : x + 4] * low_pass).sum() for x in range(2 * width)] for y in range(2 * height)]
    return np.array(rows)


@pytest.mark.parametrize("up", [False, True])
def test_a_modulated_convolution_by_hand(up):
    """arXiv 1912.04958, equations 1 and 3: w'_ijk = s_i w_ijk, w''_ijk = w'_ijk / sqrt(sum_ik w'_ijk^2 + eps)."""
    rng = np.random.default_rng(0)
    x, style, weight = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 3)), rng.normal(size=(4, 3, 3, 3))
    noise, expected = rng.normal(size=(2, 1, 8, 10) if up else (2, 1, 4, 5)), []
    for n in range(2):
        own = [weight[o] * style[n][:, None, None] for o in range(4)]
        own = [taps / np.sqrt((taps**2).sum() + 1e-8) for taps in own]
        expected.append(np.stack([(doubled if up else correlated)(x[n], taps) for taps in own]) + noise[n])
    found = layers.modulated_conv2d(
        *map(torch.from_numpy, (x, weight, style)),
        taps=setup_filter([1, 3, 3, 1]).double() if up else None,
        noise=torch.from_numpy(noise),
    )
    np.testing.assert_allclose(found.numpy(), np.stack(expected), rtol=1e-9, atol=1e-12)


def game(**changes):
    """A batch of players whose weights have left their start, with a pipe of augmentation that is on."""
    config = config_of(augment={"mode": "fixed", "p": 0.6, "pipe": "bgcfnc"}, **changes)
    generator = torch.Generator().manual_seed(5)
    features = torch.nn.functional.normalize(torch.randn(12, 5, generator=generator), dim=1)
    conditions = Conditions(features, range(12), config.condition)
    players = gan_steps.build(config, 16, features, torch.device("cpu"))
    with torch.no_grad():
        for p in [*players.g.parameters(), *players.d.parameters()]:
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.3)
    images = 48
    batch = gan_steps.Batch(config, players, conditions, images)
    return batch, torch.rand(8, 3, 16, 16, generator=generator) * 2 - 1, features[torch.arange(8)]


@pytest.mark.parametrize("changes", [{}, TRANSITION], ids=["concat", "two heads"])
def test_r1_is_what_differences_say(changes):
    """mean over images of |d (sum of logits) / d image|^2, before augmentation, by a central difference per pixel."""
    batch, real, c = game(**changes)
    d, augmented = batch.players.d, batch.augmented("real-r1")

    @torch.no_grad()
    def total(pictures):
        seen = augmented(pictures, slice(0, 8))
        return (d.heads(seen, c)[0] if d.unconditional is not None else d(seen, c)).sum()

    squares = 0.0
    sample = torch.randperm(real.numel(), generator=torch.Generator().manual_seed(0))[:40]
    for place in sample.tolist():
        moved = torch.zeros(real.numel())
        moved[place] = STEP
        moved = moved.view_as(real)
        squares += ((total(real + moved) - total(real - moved)) / (2 * STEP)).item() ** 2
    x = real.clone().requires_grad_(True)
    (_, head), *_ = gan_steps.logits(batch, augmented(x, slice(0, 8)), c)
    (slope,) = torch.autograd.grad(head.sum(), x)
    assert slope.flatten()[sample].square().sum().item() == pytest.approx(squares, rel=1e-5)
    d.precision = layers.Precision(torch.bfloat16, 2)  # which the penalty must not feel
    logged = gan_steps.step_r1(batch, real, c)["loss/R1 penalty (1)"].item()
    assert logged == pytest.approx(slope.square().sum().item() / 8, rel=1e-9)


def test_path_lengths_are_what_differences_say():
    """|J^T y| of ws, y = noise / sqrt(H W): root of the mean over layers of squared slopes; then (length - mean)^2."""
    batch, _, _ = game()
    g, fakes = batch.players.g, batch.fakes("path", 4)
    noise = torch.randn(4, 3, 16, 16, generator=batch.stream("path-direction"))
    with torch.no_grad():
        ws = fakes.styles(slice(0, 4))

        def along(ws):
            return (g.synthesis(ws, fakes.noise) * noise).sum(dim=(1, 2, 3)) / 16

        squares = torch.zeros(4, g.num_ws)
        for layer in range(g.num_ws):
            for k in range(ws.shape[2]):
                moved = torch.zeros_like(ws)
                moved[:, layer, k] = STEP
                squares[:, layer] += ((along(ws + moved) - along(ws - moved)) / (2 * STEP)).square()
    lengths = squares.mean(dim=1).sqrt()
    batch.players.path_mean.fill_(0.7)
    ws = fakes.styles(slice(0, 4))
    length = path_length(g.synthesis(ws, fakes.noise), ws, noise)
    (expected,) = torch.autograd.grad((length - 0.7).square().mean() * 2.0 * 2, g.convs[1].weight)  # weight x interval
    g.precision = layers.Precision(torch.bfloat16, 2)  # which path lengths must not feel
    logged = gan_steps.step_path_length(batch)
    torch.testing.assert_close(g.convs[1].weight.grad, expected)
    assert logged["loss/path penalty (1)"].item() == pytest.approx((lengths - 0.7).square().mean().item(), rel=1e-6)
    mean = 0.7 + 0.01 * (lengths.mean().item() - 0.7)
    assert logged["path/mean length (1)"].item() == pytest.approx(mean, rel=1e-9)


def test_the_gradient_of_r1_is_what_differences_say():
    batch, real, c = game()
    d = batch.players.d
    parameter = d.blocks[0].second.weight
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))

    def penalty():
        x = real.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(d(batch.augmented("real-r1")(x, slice(0, 8)), c).sum(), x, create_graph=True)
        return slope.square().sum() / 8

    (gradient,) = torch.autograd.grad(penalty(), parameter)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter.add_(direction, alpha=sign * 1e-6)
        values.append(penalty().item())
        with torch.no_grad():
            parameter.sub_(direction, alpha=sign * 1e-6)
    assert (gradient * direction).sum().item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)
    gan_steps.step_r1(batch, real, c)  # every second batch, so twice as strong: gamma / 2 x interval
    torch.testing.assert_close(parameter.grad, gradient * (0.1 / 2 * 2))


def test_the_discriminator_sees_both_sides_augmented_and_each_under_its_own_condition():
    """softplus(-D(aug(x), c)) + softplus(D(aug(G(z, c')), c')), reals and fakes by different draws of the pipe."""
    batch, real, c = game()
    d, fakes, whole = batch.players.d, batch.fakes("d"), slice(0, 8)
    with torch.no_grad():
        fake = batch.augmented("fake-d")(fakes.pictures(fakes.styles(whole), whole), whole)
        real_logits, fake_logits = d(batch.augmented("real-d")(real, whole), c), d(fake, fakes.c)
    expected = (1 + (-real_logits).exp()).log().mean() + (1 + fake_logits.exp()).log().mean()
    assert not batch.draws("real-d")["warp"].equal(batch.draws("fake-d")["warp"])
    values = gan_steps.step_discriminator(batch, real, c)
    assert values["loss/D (nats)"].item() == pytest.approx(expected.item(), rel=1e-9)
    assert values["sign/real (-1 to 1)"].item() == real_logits.sign().mean().item()


def test_a_transition_judges_by_the_unconditional_head_and_adds_the_other_by_its_weight():
    """arXiv 2201.06578, equation 1: loss = unconditional + weight * conditional; R1 and ADA see the first alone."""
    batch, real, c = game(**TRANSITION)
    d = batch.players.d
    assert batch.weight == 0.5
    with torch.no_grad():
        fakes, augmented = batch.fakes("g"), batch.augmented("fake-g")
        pictures = augmented(fakes.pictures(fakes.styles(slice(0, 8)), slice(0, 8)), slice(0, 8))
        heads = [torch.nn.functional.softplus(-head).mean().item() for head in d.heads(pictures, fakes.c)]
    assert gan_steps.step_generator(batch)["loss/G (nats)"].item() == pytest.approx(heads[0] + 0.5 * heads[1])
    gan_steps.step_r1(batch, real, c)
    assert d.unconditional.weight.grad.abs().sum() > 0
    assert all(p.grad is None or not p.grad.any() for p in [*d.out.parameters(), *d.mapping.parameters()])
    ada = config_of(**TRANSITION)
    batch.players.augment = gan_steps.Adaptive(ada.augment)
    with torch.no_grad():
        d.unconditional.bias.fill_(1e4)
        d.out.weight.zero_()
    gan_steps.step_discriminator(batch, real, c)
    assert batch.players.augment.state_dict()["sign_sum"] == batch.players.augment.state_dict()["sign_count"] == 8
