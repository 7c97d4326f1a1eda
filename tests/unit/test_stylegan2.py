"""The networks: shapes, formulas of their layers, conditioning, and what evaluation must not change."""

import math
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F

from eeg_gan.models.stylegan2 import layers
from eeg_gan.models.stylegan2.discriminator import Discriminator, DiscriminatorConfig
from eeg_gan.models.stylegan2.generator import Generator, GeneratorConfig, draw_crossover, mix_styles
from eeg_gan.ops import setup_filter

SIZES = {"channel_base": 128, "channel_max": 8}


def small_generator(c_dim=5, resolution=16):
    torch.manual_seed(0)
    return Generator(6, c_dim, 7, resolution, **SIZES)


def small_discriminator(c_dim=5, resolution=16, group=2):
    torch.manual_seed(0)
    return Discriminator(resolution, c_dim, mbstd_group=group, **SIZES)


@pytest.mark.parametrize("resolution", [16, 32])
@pytest.mark.parametrize("c_dim", [0, 5])
def test_shapes_and_gradients(c_dim, resolution):
    G, D = small_generator(c_dim, resolution), small_discriminator(c_dim, resolution)
    z, c = torch.randn(4, 6), torch.randn(4, c_dim) if c_dim else None
    noise = G.draw_noise(torch.Generator().manual_seed(1), 4)
    images = G(z, c, noise)
    logits = D(images, c)
    assert images.shape == (4, 3, resolution, resolution) and logits.shape == (4,)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for net in (G, D) for p in net.parameters())


def test_configs_build_networks():
    config = GeneratorConfig(z_dim=4, w_dim=6, channel_base=64, channel_max=4, map_layers=1)
    G = Generator(c_dim=3, resolution=16, **asdict(config))
    keys = asdict(DiscriminatorConfig(64, 4, 1, 1))
    assert keys.pop("projected") is None  # names another discriminator
    D = Discriminator(c_dim=3, resolution=16, **keys)
    assert D(G(torch.randn(1, 4), torch.randn(1, 3)), torch.randn(1, 3)).shape == (1,)
    with pytest.raises(ValueError, match="at least 1"):
        GeneratorConfig(z_dim=0)


PUBLISHED = {  # parameters of G and D with z and w of 512 and a condition of 128 (10 at 32 px)
    "auto 128": (128, 128, 16384, 2, "residual", 23_277_469, 26_311_808),
    "auto 256": (256, 128, 16384, 2, "residual", 23_519_714, 26_430_528),
    "wacv2024 128": (128, 128, 32768, 2, "orig", 28_080_925, 29_638_912),
    "stylegan2 256": (256, 128, 32768, 8, "residual", 30_362_530, 31_293_568),
    "paper256": (256, 128, 16384, 8, "residual", 25_095_650, 26_430_528),
    "cifar 32": (32, 10, 32768, 2, "orig", 20_215_315, 23_089_664),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_of_the_published_networks(name):
    resolution, c_dim, base, map_layers, architecture, n_g, n_d = PUBLISHED[name]
    with torch.device("meta"):
        G = Generator(512, c_dim, 512, resolution, channel_base=base, map_layers=map_layers)
        D = Discriminator(resolution, c_dim, channel_base=base, map_layers=8, architecture=architecture)
    assert sum(p.numel() for p in G.parameters()) == n_g
    assert sum(p.numel() for p in D.parameters()) == n_d


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256, 512, 1024, (64, 1024), (768, 512)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_size_and_number_of_colours_can_be_built(size, channels):
    with torch.device("meta"):
        G, D = Generator(512, 40, 512, size, channels), Discriminator(size, 40, channels)
    levels = len(layers.sizes_up_to(size))
    assert G.num_ws == 2 * levels and G.to_rgb[-1].weight.shape[0] == D.from_rgb[0].weight.shape[1] == channels
    assert len(D.blocks) == levels - 1 and G.convs[-1].noise_const.shape[2:] == torch.Size(
        [size, size][:2] if isinstance(size, int) else size
    )


@pytest.mark.parametrize("size", [1024, (256, 512)])
def test_large_and_wide_images_are_drawn_and_judged(size):
    G = Generator(6, 5, 7, size, channel_base=4096, channel_max=4)
    D = Discriminator(size, 5, channel_base=4096, channel_max=4, mbstd_group=1)
    images = G(torch.randn(1, 6), torch.randn(1, 5))
    assert images.shape == (1, 3, *G.size)
    D(images, torch.randn(1, 5)).sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in (G.constant, D.from_rgb[0].weight))


@pytest.mark.parametrize("size", [32, (32, 48)])
@pytest.mark.parametrize("g_architecture", ["skip", "residual", "orig"])
@pytest.mark.parametrize("d_architecture", ["skip", "residual", "orig"])
@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16])
def test_architectures_sizes_channels_and_half_types(size, g_architecture, d_architecture, half):
    torch.manual_seed(0)
    G = Generator(6, 5, 7, size, 4, **SIZES, architecture=g_architecture, clamp=256.0)
    D = Discriminator(size, 5, 4, **SIZES, mbstd_group=2, architecture=d_architecture, two_heads=True, clamp=256.0)
    z, c = torch.randn(2, 6), torch.randn(2, 5)
    expected = G(z, c)
    G.precision = D.precision = layers.Precision(half, 2)
    images = G(z, c)
    assert images.shape == (2, 4, *G.size) and images.dtype == torch.float32
    torch.testing.assert_close(images, expected, atol=0.05, rtol=0.05)
    unconditional, conditional = D.heads(images, c)
    assert conditional.equal(D(images, c)) and conditional.dtype == torch.float32
    (unconditional + conditional).sum().backward()
    for network in (G, D):
        assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def test_grey_images():
    G, D = Generator(6, 0, 7, 16, 1, **SIZES), Discriminator(16, 0, 1, **SIZES, mbstd_group=2)
    images = G(torch.randn(2, 6))
    assert images.shape == (2, 1, 16, 16) and D(images).shape == (2,)


def test_second_derivatives_leave_half_types():
    D = small_discriminator()
    D.precision = layers.Precision(torch.bfloat16, 2)
    images, c = torch.randn(2, 3, 16, 16), torch.randn(2, 5)
    coarse = D(images, c)
    with layers.without_half(D):
        fine = D(images, c)
    D.precision = layers.Precision()
    assert fine.equal(D(images, c)) and not fine.equal(coarse)


@pytest.mark.parametrize("architecture", ["skip", "residual", "orig"])
def test_small_images_keep_their_base_and_the_sum_of_colours_in_full_precision(architecture):
    """However many levels a half type is for: 4 x 4 pixels are never among them."""
    G = Generator(6, 5, 7, 16, **SIZES, architecture=architecture)
    D = Discriminator(16, 5, **SIZES, mbstd_group=2, architecture=architecture)
    G.precision = D.precision = layers.Precision(torch.bfloat16, 4)
    types = {}
    for module in (*G.convs, *G.to_rgb, *D.blocks, D.conv):
        module.register_forward_hook(lambda own, given, out: types.update({own: out.dtype}))
    D(G(torch.randn(2, 6), torch.randn(2, 5)), torch.randn(2, 5))
    full = {module for module, dtype in types.items() if dtype == torch.float32}
    assert full == {G.convs[0], D.conv} | ({G.to_rgb[0]} if architecture == "skip" else set())


def test_the_transition_starts_without_the_condition():
    torch.manual_seed(0)
    G = Generator(6, 5, 7, 16, **SIZES, conditioning="transitional")
    z, c = torch.randn(2, 6), torch.randn(2, 5)
    assert G(z, c, weight=0.0).equal(G(z, c.roll(1, 0), weight=0.0))
    assert not torch.allclose(G(z, c, weight=0.5), G(z, c.roll(1, 0), weight=0.5))


def test_float16_convolution_does_not_overflow():
    x, style = torch.randn(2, 4, 6, 6), torch.randn(2, 4) * 1e4
    weight = torch.randn(5, 4, 3, 3) * 1e3
    expected = layers.modulated_conv2d(x, weight, style)
    torch.testing.assert_close(layers.modulated_conv2d(x.half(), weight, style).float(), expected, atol=0.02, rtol=0.02)


def test_no_activation_passes_the_clamp():
    """In units of the layer's gain, as published: 256 where nothing follows, 256 / sqrt(2) of each of two branches."""
    G = Generator(6, 5, 7, 16, **SIZES, architecture="residual", clamp=0.05)
    D = Discriminator(16, 5, **SIZES, mbstd_group=2, clamp=0.05)
    with torch.no_grad():
        for weight in (p for name, p in D.named_parameters() if name.endswith("weight")):
            weight.mul_(50)  # so that all but the RGB of the generator reach it
    largest = {}
    for module in (*G.convs, *G.to_rgb, *D.from_rgb, D.conv, *(m for b in D.blocks for m in (b.first, b.second))):
        module.register_forward_hook(lambda own, given, out: largest.update({own: out.abs().max().item()}))
    D(9 * G(torch.randn(2, 6), torch.randn(2, 5)), torch.randn(2, 5))
    branches = {*G.convs[2::2], *(block.second for block in D.blocks)}
    for module, value in largest.items():
        limit = 0.05 * layers.HALF_GAIN if module in branches else 0.05
        assert value <= limit * (1 + 1e-6) and (module in G.to_rgb or value > 0.9 * limit), module


def test_generator_is_deterministic_and_noise_modes_differ_only_by_strength():
    G = small_generator()
    z, c = torch.randn(2, 6), torch.randn(2, 5)
    torch.testing.assert_close(G(z, c), G(z, c, noise="none"))  # strengths start at zero
    with torch.no_grad():
        for conv in G.convs:
            conv.noise_strength.fill_(0.5)
    noise = G.draw_noise(torch.Generator().manual_seed(1), 2)
    assert [tuple(layer.shape) for layer in noise] == [(2, 1, s, s) for s in (4, 8, 8, 16, 16)]
    assert G(z, c, noise).equal(G(z, c, noise)) and not torch.allclose(G(z, c, noise), G(z, c))
    torch.testing.assert_close(G(z, c, noise)[:1], G(z[:1], c[:1], [layer[:1] for layer in noise]))
    torch.testing.assert_close(G(None, ws=G.mapping(z, c), noise=noise), G(z, c, noise))
    with pytest.raises(ValueError, match="draw_noise"):
        G(z, c, noise="random")


def test_average_w_moves_only_when_asked():
    G = small_generator()
    z, c = torch.randn(8, 6), torch.randn(8, 5)
    before = {name: value.clone() for name, value in G.state_dict().items()}
    G(z, c)
    G(z, c, psi=0.5)
    assert all(value.equal(before[name]) for name, value in G.state_dict().items())
    w = G.mapping(z, c)[:, 0]
    G.mapping_network.follow(w)
    torch.testing.assert_close(G.mapping_network.w_average, 0.005 * w.mean(dim=0).detach())


def test_truncation_and_style_mixing():
    G = small_generator()
    z, c = torch.randn(3, 6), torch.randn(3, 5)
    ws = G.mapping(z, c)
    G.mapping_network.w_average.fill_(2.0)
    torch.testing.assert_close(G.mapping(z, c, psi=0.0), torch.full_like(ws, 2.0))
    cut = G.mapping(z, c, psi=0.5, cutoff=2)
    torch.testing.assert_close(cut[:, :2], (ws[:, :2] + 2) / 2)
    torch.testing.assert_close(cut[:, 2:], ws[:, 2:])
    mixed = mix_styles(ws, ws + 1, torch.tensor([1, 6, 3])) - ws
    torch.testing.assert_close(mixed[..., 0].sum(dim=1), torch.tensor([5.0, 0.0, 3.0]))
    generator = torch.Generator().manual_seed(0)
    assert draw_crossover(generator, 50, 6, 0.0).eq(6).all()
    assert set(draw_crossover(generator, 200, 6, 1.0).tolist()) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
def test_modulated_convolution_is_one_convolution_per_sample(up, demodulate):
    x, style = torch.randn(3, 4, 6, 6).double(), torch.randn(3, 4).double()
    weight, noise = torch.randn(5, 4, 3, 3).double(), torch.randn(3, 1, 12 if up else 6, 12 if up else 6).double()
    taps = setup_filter([1, 3, 3, 1]) if up else None
    y = layers.modulated_conv2d(x, weight, style, demodulate, taps, noise)
    for i in range(3):
        own = weight * style[i][:, None, None]
        own = own / (own.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt() if demodulate else own
        expected = layers.conv_up2d(x[i : i + 1], own, taps) if up else F.conv2d(x[i : i + 1], own, padding=1)
        torch.testing.assert_close(y[i : i + 1], expected + noise[i])


def test_demodulation_is_the_materialised_formula():
    weight, style = torch.randn(5, 4, 3, 3).double(), torch.randn(2, 4).double()
    own = weight[None] * style[:, None, :, None, None]
    expected = (own.square().sum(dim=(2, 3, 4)) + 1e-8).rsqrt()
    torch.testing.assert_close(layers.demodulation(weight, style), expected)


def test_up_and_down_convolutions_keep_a_constant_inside():
    taps, weight = setup_filter([1, 3, 3, 1]), torch.zeros(1, 1, 3, 3)
    weight[..., 1, 1] = 1
    x = torch.ones(1, 1, 8, 8)
    up, down = layers.conv_up2d(x, weight, taps), layers.conv_down2d(x, weight, taps)
    assert up.shape[2:] == (16, 16) and down.shape[2:] == (4, 4)
    torch.testing.assert_close(up[..., 2:-2, 2:-2], torch.ones(1, 1, 12, 12))
    torch.testing.assert_close(down[..., 1:-1, 1:-1], torch.ones(1, 1, 2, 2))
    torch.testing.assert_close(up.flip(2, 3), up)
    torch.testing.assert_close(down, layers.conv_down2d(x, torch.ones(1, 1, 1, 1), taps), atol=0.5, rtol=0)


def test_minibatch_deviation_is_the_mean_deviation_of_a_group():
    x = torch.randn(6, 2, 3, 5).double()
    expected = [x[i : i + 3].numpy().std(axis=0).mean() for i in (0, 3)]
    found = layers.minibatch_deviation(x, 3)[:, 2]
    torch.testing.assert_close(found, torch.tensor(expected).repeat_interleave(3)[:, None, None].expand(6, 3, 5))


def test_every_layer_takes_its_style():
    """4x4: one convolution, then RGB by the style of the next layer; so at every resolution."""
    G, styles = small_generator(), {}
    for module in (*G.convs, *G.to_rgb):
        module.register_forward_pre_hook(lambda own, given: styles.update({own: given[1][0, 0].item()}))
    G.synthesis(torch.arange(6.0)[None, :, None].expand(1, 6, 7))
    assert [styles[conv] for conv in G.convs] == [0, 1, 2, 3, 4] and [styles[rgb] for rgb in G.to_rgb] == [1, 3, 5]


def test_the_logit_is_the_products_of_features_and_mapped_condition_over_the_root_of_their_number():
    D = small_discriminator()
    images, c = torch.randn(4, 3, 16, 16), torch.randn(4, 5)
    features, condition = D.out(D.features(images)), D.mapping(None, c)
    assert features.shape == condition.shape == (4, 8)
    torch.testing.assert_close(D(images, c), (features * condition).sum(dim=1) / math.sqrt(8))


def test_the_length_of_z_and_of_the_embedded_condition_tells_nothing():
    mapping = small_generator().mapping_network
    z, c = torch.randn(4, 6), torch.randn(4, 5)
    torch.testing.assert_close(mapping(3 * z, c), mapping(z, c))
    with torch.no_grad():
        mapping.embed.weight.mul_(3)  # its bias starts at zero
    torch.testing.assert_close(mapping(z, c), mapping(z, c / 3))


def test_minibatch_deviation_sees_consecutive_groups():
    x = torch.zeros(6, 2, 3, 3)
    x[2] = 1.0  # second group of two: deviation 1/2; the others are constant
    out = layers.minibatch_deviation(x, 2)
    assert out.shape == (6, 3, 3, 3)
    torch.testing.assert_close(out[:, 2, 0, 0], torch.tensor([0, 0, 0.5, 0.5, 0, 0]), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="1, 2, 3, 6"):
        layers.minibatch_deviation(x, 4)


def test_projection_and_group_independence():
    D = small_discriminator()
    images, c = torch.randn(4, 3, 16, 16), torch.randn(4, 5)
    logits = D(images, c)
    assert not torch.allclose(logits, D(images, c.roll(1, 0)))
    torch.testing.assert_close(D(images[2:], c[2:]), logits[2:])


def test_equalised_rate_keeps_the_variance():
    torch.manual_seed(0)
    x = torch.randn(512, 256)
    for multiplier in (1.0, 0.01):
        layer = layers.Linear(256, 300, bias_init=2.0, lr_multiplier=multiplier)
        y = layer(x)
        assert y.std().item() == pytest.approx(1.0, abs=0.05) and y.mean().item() == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("resolution", [8, 17, 36, 2048, (64, 17)])
def test_sizes_that_cannot_be_drawn(resolution):
    with pytest.raises(ValueError, match="times a power of two.* such as [0-9]+x[0-9]+"):
        small_generator(resolution=resolution)


def test_sizes_are_a_base_times_powers_of_two():
    assert layers.sizes_up_to(32) == [(4, 4), (8, 8), (16, 16), (32, 32)]
    assert layers.sizes_up_to((96, 128))[0] == (6, 8) and layers.sizes_up_to(48)[0] == (6, 6)
