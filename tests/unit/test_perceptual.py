import numpy as np
import pytest
import torch

from eeg_gan.metrics.perceptual import diversity, pixcorr, ssim
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
