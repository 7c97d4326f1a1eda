"""Drawing is deterministic and sliceable; what fires, fires with probability p; what does not is the identity."""

import math

import numpy as np
import pytest
import torch

from eeg_gan.augment import image as augment
from eeg_gan.ops import affine_warp


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(p, pipe="bgcfnc", n=8, seed=0, channels=3):
    return augment.draw(generator(seed), n, p, 16, 20, pipe, channels)


GROUPS = {"blit": "warp", "geom": "warp", "color": "color", "filter": "filter", "noise": "noise", "cutout": "cutout"}


@pytest.mark.parametrize("pipe", augment.PIPES)
def test_a_pipe_draws_only_its_groups_and_p_zero_is_the_identity(pipe):
    draws = drawn(0.0, pipe)
    assert set(draws) == {GROUPS[group] for group in augment.PIPES[pipe]}
    x = torch.randn(8, 3, 16, 20)
    expected = affine_warp(x, torch.eye(2, 3).expand(8, 2, 3)) if "warp" in draws else x
    torch.testing.assert_close(augment.apply(x, draws), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pipe", augment.PIPES)
def test_every_transform_moves_the_image_at_p_one(pipe):
    x = torch.randn(8, 3, 16, 20)
    y = augment.apply(x, drawn(1.0, pipe))
    assert y.shape == x.shape and y.isfinite().all() and not torch.allclose(y, x, atol=1e-2)


def test_slices_of_the_global_draws_give_slices_of_the_images():
    x, draws = torch.randn(8, 3, 16, 20), drawn(0.7)
    whole = augment.apply(x, draws)
    halves = [augment.apply(x[where], augment.part(draws, where)) for where in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(torch.cat(halves), whole)
    again = drawn(0.7)
    assert all(draws[name].equal(again[name]) for name in draws)


def test_the_stream_does_not_depend_on_p():
    states = []
    for p in (0.0, 0.5, 1.0):
        g = generator()
        augment.draw(g, 5, p, 16, 16, "bgcfnc")
        states.append(g.get_state())
    assert states[0].equal(states[1]) and states[0].equal(states[2])


def test_transforms_fire_with_probability_p():
    n, p = 20000, 0.4
    eye = torch.eye(2, 3)
    color = drawn(p, "color", n)["color"]
    offset_fires = (color[:, :, 3].norm(dim=1) > 0).float().mean().item()
    assert offset_fires == pytest.approx(p, abs=0.02)
    cutout = drawn(p, "cutout", n)["cutout"]
    assert (cutout[:, 0] >= 0).float().mean().item() == pytest.approx(p, abs=0.02)
    blit = drawn(p, "blit", n)["warp"]
    still = ((blit - eye).abs().amax(dim=(1, 2)) < 1e-5).float().mean().item()
    rounded_away = 1 / 4 * 1 / 5  # a shift of 16 x 20 px is U(-2, 2) and U(-2.5, 2.5) before rounding
    stays = (1 - p / 2) * (1 - 0.75 * p) * (1 - p + p * rounded_away)
    assert still == pytest.approx(stays, abs=0.02)


def test_blits_are_whole_pixel_moves():
    matrix = drawn(1.0, "blit", 200)["warp"]
    linear = matrix[:, :, :2]
    torch.testing.assert_close(linear, linear.round(), atol=1e-5, rtol=0)
    torch.testing.assert_close(linear.det().abs(), torch.ones(200))
    torch.testing.assert_close(matrix[:, :, 2], matrix[:, :, 2].round(), atol=1e-4, rtol=0)
    assert set(linear.det().round().tolist()) == {-1.0, 1.0}


def test_geometry_has_the_spread_of_the_table():
    matrix = drawn(1.0, "geom", 20000)["warp"]
    log_area = matrix[:, :, :2].det().log2()  # anisotropic scaling and rotation keep the area
    assert log_area.std().item() == pytest.approx(0.4, rel=0.05) and abs(log_area.mean().item()) < 0.02
    sizes = torch.linalg.svdvals(matrix[:, :, :2]).log2()
    apart = (sizes[:, 0] - sizes[:, 1]) / 2  # |N(0, 0.2)|: one side by s, the other by 1 / s
    assert apart.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.05)
    shift = torch.linalg.solve(matrix[:, :, :2], matrix[:, :, 2])
    assert shift.std(dim=0).tolist() == pytest.approx([0.125 * 20, 0.125 * 16], rel=0.05)
    matrix = drawn(0.4, "geom", 20000)["warp"]
    assert (matrix[:, 0, 1] != 0).float().mean().item() == pytest.approx(0.4, abs=0.02), "one of two rotations"


def test_blits_shift_by_an_eighth_at_most():
    matrix = augment.draw(generator(), 20000, 1.0, 160, 160, "blit")["warp"]
    shift = matrix[:, :, 2].round()
    assert shift.abs().max() <= 20 and shift.std().item() == pytest.approx(20 / math.sqrt(3), rel=0.03)


def test_colors_have_the_spread_of_the_table():
    """Along grey lie contrast and the luma flip, across it saturation and hue; the offset before them is brightness."""
    matrix = drawn(1.0, "color", 20000)["color"].double()
    linear, grey = matrix[:, :, :3], torch.full([3], 3**-0.5, dtype=torch.double)
    along = grey @ linear @ grey
    contrast = along.abs()
    saturation = (linear.det().abs() / contrast**3).sqrt()
    cosine = (linear.diagonal(dim1=1, dim2=2).sum(1) - along) / (2 * contrast * saturation)
    brightness = torch.linalg.solve(linear, matrix[:, :, 3])
    assert contrast.log2().std().item() == pytest.approx(0.5, rel=0.05)
    assert (along < 0).double().mean().item() == pytest.approx(0.5, abs=0.02)
    assert saturation.log2().std().item() == pytest.approx(1.0, rel=0.05)
    assert abs(cosine.mean().item()) < 0.02 and cosine.std().item() == pytest.approx(0.5**0.5, rel=0.03)
    assert brightness[:, 0].std().item() == pytest.approx(0.2, rel=0.05)
    torch.testing.assert_close(brightness[:, :1].expand(-1, 3), brightness, atol=1e-4, rtol=0)


def test_filters_and_noise_have_the_spread_of_the_table():
    """The bands of lowest and highest frequency by the published recipe, in NumPy: 2^N(0, 1) each, over its power."""
    kernels = drawn(1.0, "filter", 20000)["filter"]
    signs = 1 - 2 * (torch.arange(43) % 2)
    found = [kernels.sum(dim=1).log2(), (kernels * -signs).sum(dim=1).log2()]
    rng, gains = np.random.default_rng(0), np.ones((20000, 4))
    for band in range(4):
        own = np.ones((20000, 4))
        own[:, band] = 2 ** rng.normal(size=20000)
        gains *= own / np.sqrt((own**2 * np.array([10, 1, 1, 1]) / 13).sum(axis=1, keepdims=True))
    for values, expected in zip(found, np.log2(gains[:, [0, 3]]).T, strict=True):
        assert values.mean().item() == pytest.approx(expected.mean(), abs=0.03)
        assert values.std().item() == pytest.approx(expected.std(), rel=0.05)
    noise = drawn(1.0, "noise", 4000)["noise"]
    assert noise.std().item() == pytest.approx(0.1, rel=0.05)
    sigma = noise.flatten(1).std(dim=1)
    assert sigma.mean().item() == pytest.approx(0.1 * math.sqrt(2 / math.pi), rel=0.05)


def test_color_moves_grey_along_grey_and_keeps_luma_under_hue():
    matrix = drawn(1.0, "color", 500)["color"]
    grey = matrix[:, :, :3] @ torch.ones(3) + matrix[:, :, 3]
    torch.testing.assert_close(grey, grey[:, :1].expand(-1, 3), atol=1e-4, rtol=1e-4)
    assert drawn(1.0, "color", 4, channels=1)["color"].shape == (4, 1, 2)
    with pytest.raises(ValueError, match="grey"):
        drawn(1.0, "color", 4, channels=4)


def test_octaves_sum_to_the_identity_and_pass_low_to_high():
    bands = augment._octaves()
    assert bands.shape == (4, 43)
    torch.testing.assert_close(bands.sum(dim=0), torch.eye(43)[21], atol=1e-6, rtol=0)
    torch.testing.assert_close(bands.sum(dim=1), torch.tensor([1.0, 0, 0, 0]), atol=1e-5, rtol=0)
    response = torch.fft.rfft(bands, 512).abs()
    peaks = response.argmax(dim=1).tolist()
    assert peaks == sorted(peaks) and peaks[3] > 200
    kernels = drawn(1.0, "filter", 2000)["filter"]
    assert kernels.isfinite().all()


def test_cutout_is_a_square_of_half_the_image():
    hole = 1 - augment._outside_hole(torch.tensor([[0.5, 0.5], [-1.0, -1.0]]), 16, 20)
    assert hole[0].sum().item() == 8 * 10 and hole[0, 0, 8, 10] == 1 and hole[1].sum() == 0


def test_apply_is_twice_differentiable():
    x = torch.randn(2, 3, 16, 20, requires_grad=True)
    y = augment.apply(x, drawn(0.8, n=2)).square().sum()
    (gradient,) = torch.autograd.grad(y, x, create_graph=True)
    gradient.square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="bgcfnc"):
        drawn(0.5, "bgz")
    with pytest.raises(ValueError, match="probability"):
        drawn(math.pi)
