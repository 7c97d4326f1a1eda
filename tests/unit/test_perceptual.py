import numpy as np
import pytest
import torch

from eeg_gan.metrics.perceptual import diversity, map_distance, path_lengths, pixcorr, ssim
from eeg_gan.torchvision_compat import load


@pytest.fixture
def images():
    return torch.randint(256, (4, 3, 32, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_an_image_is_like_itself(images):
    np.testing.assert_allclose(pixcorr(images, images), 1.0)
    np.testing.assert_allclose(ssim(images, images), 1.0)
    np.testing.assert_allclose(pixcorr(images, 255 - images), -1.0)
    assert np.abs(ssim(images, images.flip(0))).max() < 0.2


def test_flat_and_tiny_images_give_numbers(images):
    assert pixcorr(torch.full_like(images, 7), images).tolist() == [0.0] * 4
    assert np.isfinite(ssim(images[:, :, :4, :4], images[:, :, :4, :4])).all()


def test_ssim_is_the_usual_one(images):
    noisy = (images.float() * 0.7 + 20).to(torch.uint8)
    theirs = load("torchmetrics.functional.image").structural_similarity_index_measure(
        noisy.double(), images.double(), sigma=1.5, kernel_size=11, data_range=255.0, reduction="none"
    )
    assert ssim(noisy, images) == pytest.approx(theirs.numpy(), abs=0.02)  # theirs pads the borders


def test_diversity_within_conditions():
    features = np.array([[0.0], [1.0], [5.0], [5.0], [9.0]])
    assert diversity(features, np.array(["a", "a", "b", "b", "c"])).tolist() == [1.0, 0.0]


def test_map_distance_sees_direction_alone():
    up, right = torch.tensor([[[[0.0]], [[2.0]]]]), torch.tensor([[[[5.0]], [[0.0]]]])
    assert map_distance([up, up], [3 * up, right]).tolist() == [2.0]
    half = torch.cat([up, right], 3), torch.cat([up, up], 3)
    assert map_distance([half[0]], [half[1]]).tolist() == [1.0]  # mean over places


def test_path_lengths_of_a_linear_generator_are_known():
    generator = torch.Generator().manual_seed(0)
    ws, other = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.double)
    matrix = torch.randn(12, 7, generator=generator, dtype=torch.double)
    lengths = path_lengths(ws, other, lambda w: w.flatten(1) @ matrix, lambda a, b: (a - b).square().sum(1))
    torch.testing.assert_close(lengths, ((other - ws).flatten(1) @ matrix).square().sum(1), rtol=1e-6, atol=0)


def test_path_lengths_are_squared_speeds_at_the_start():
    """g(w) = sin w moves by cos(w) (w' - w): the length tends to its square, with an error that falls with epsilon."""
    generator = torch.Generator().manual_seed(0)
    ws, other = torch.randn(2, 6, 1, 4, generator=generator, dtype=torch.double)
    exact = (ws.cos() * (other - ws)).square().sum((1, 2))
    errors = []
    for epsilon in (1e-2, 1e-3, 1e-4):
        lengths = path_lengths(ws, other, torch.sin, lambda a, b: (a - b).square().sum((1, 2)), epsilon)
        errors.append(((lengths - exact).abs() / exact).max().item())
    assert errors[0] > 5 * errors[1] > 25 * errors[2] and errors[2] < 1e-3
