"""The non-saturating logistic game and the hinge game, the penalty on real images' gradients, lengths of paths."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Mean of -log sigmoid(real) plus mean of -log(1 - sigmoid(fake))."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Mean of -log sigmoid(fake)."""
    return F.softplus(-fake_logits).mean()


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Mean of max(0, 1 - real) plus mean of max(0, 1 + fake) (Lim & Ye 2017, arXiv 1705.02894)."""
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def hinge_generator_loss(fake_logits: Tensor) -> Tensor:
    """Mean of -fake."""
    return -fake_logits.mean()


def r1_penalty(images: Tensor, logits: Tensor) -> Tensor:
    """Mean over the batch of the squared norm of d logits / d images; the loss is gamma / 2 times this.

    `images` are the leaves before augmentation, so that the gradient passes through it.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum() / len(images)


def path_length(images: Tensor, ws: Tensor, noise: Tensor) -> Tensor:
    """[N] lengths ||J^T y||, J = d images [N, C, H, W] / d ws [N, L, D], y = noise / sqrt(H W) with noise ~ N(0, 1)."""
    height, width = images.shape[2:]
    along = (images * noise).sum() / math.sqrt(height * width)
    (gradient,) = torch.autograd.grad(along, ws, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()
