import math

import pytest
import torch
import torch.nn.functional as F

from eeg_gan.losses.contrastive import (
    LARGEST,
    ContrastiveConfig,
    LogitScale,
    clip_loss,
    contrastive,
    logit_scale,
    soft_targets,
)
from eeg_gan.torchvision_compat import load


def test_clip_loss_by_hand():
    a = torch.eye(2)
    expected = math.log(1 + math.exp(-3.0))  # each row: cosines 1 and 0, scale 3
    torch.testing.assert_close(clip_loss(a, 5 * a, 3.0), torch.tensor(expected))


def test_clip_loss_is_symmetric_and_finds_the_pairing():
    torch.manual_seed(0)
    a, b = torch.randn(8, 6), torch.randn(8, 6)
    torch.testing.assert_close(clip_loss(a, b, 10.0), clip_loss(b, a, 10.0))
    assert clip_loss(a, a, 10.0) < clip_loss(a, a.roll(1, 0), 10.0)


def test_trials_of_one_image_share_the_target():
    torch.manual_seed(0)
    a, b = torch.randn(4, 6), torch.randn(4, 6)
    torch.testing.assert_close(clip_loss(a, b, 7.0, same=torch.arange(4)), clip_loss(a, b, 7.0))
    pair = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    perfect = torch.tensor([5, 5, 9])
    target = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(clip_loss(pair, pair, 9.0, perfect), F.cross_entropy(9 * pair @ pair.T, target))
    swapped = b[[1, 0, 2, 3]]  # between trials of one image the pairing is free
    same = torch.tensor([5, 5, 9, 7])
    torch.testing.assert_close(clip_loss(a, swapped, 7.0, same), clip_loss(a, b, 7.0, same))
    assert (clip_loss(a, swapped, 7.0) - clip_loss(a, b, 7.0)).abs() > 1e-3


def test_logit_scale_has_one_element_and_stops_at_a_hundred_but_comes_back():
    scale = LogitScale(0.07)
    assert scale.log_scale.shape == (1,)
    torch.testing.assert_close(scale(), torch.tensor([1 / 0.07]))
    with torch.no_grad():
        scale.log_scale.fill_(LARGEST + 0.1)
    torch.testing.assert_close(scale(), torch.tensor([100.0]))
    (-scale()).sum().backward()  # descent would raise it further
    assert scale.log_scale.grad == 0
    scale.log_scale.grad = None
    scale().sum().backward()  # descent lowers it
    assert scale.log_scale.grad > 0


def test_a_kept_temperature_has_no_gradient():
    assert not LogitScale(0.1, learn=False).log_scale.requires_grad
    with pytest.raises(ValueError, match="temperature"):
        ContrastiveConfig(temperature=0.0)


def test_the_scale_learns():
    torch.manual_seed(0)
    scale, a = LogitScale(1.0), torch.eye(4)
    clip_loss(a, a, scale()).backward()
    assert scale.log_scale.grad < 0


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_hard_targets_give_what_open_clip_gives(kind):
    torch.manual_seed(0)
    a, b = (torch.randn(7, 5, requires_grad=True) for _ in range(2))
    unit = [F.normalize(x, dim=1) for x in (a, b)]
    config = ContrastiveConfig(kind=kind, same_image=False, temperature=0.1)
    scale = logit_scale(config)
    losses = load("open_clip.loss")
    theirs = losses.ClipLoss()(*unit, 10.0) if kind == "clip" else losses.SigLipLoss()(*unit, 10.0, -10.0)
    ours = contrastive(a, b, scale(), config)
    torch.testing.assert_close(ours, theirs)
    for own, other in zip(torch.autograd.grad(ours, (a, b)), torch.autograd.grad(theirs, (a, b)), strict=True):
        torch.testing.assert_close(own, other)
    assert all(p.requires_grad for p in scale.parameters()) and len(scale()) == (1 if kind == "clip" else 2)


def test_trials_of_one_class_are_half_positives():
    shown, label = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 0, 1])
    found = soft_targets(shown, label, 0.5, 4, shown.device)
    assert found.tolist() == [[1, 1, 0.5, 0], [1, 1, 0.5, 0], [0.5, 0.5, 1, 0], [0, 0, 0, 1]]
    assert soft_targets(None, label, 0.0, 4, shown.device) is None
    assert soft_targets(None, label, 1.0, 4, shown.device)[0].tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_soft_target_pulls_trials_of_a_class_together(kind):
    """Descent on free vectors: with the class as target, cosines within it end far above those between classes."""
    shown, label = torch.arange(6), torch.tensor([0, 0, 0, 1, 1, 1])
    within = {}
    for share in (0.0, 0.8):
        torch.manual_seed(0)
        config = ContrastiveConfig(kind=kind, same_class=share, learn_temperature=False, temperature=0.2, bias=-2.0)
        a, b, scale = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True), logit_scale(config)
        optimiser = torch.optim.Adam([a, b], lr=0.1)
        for _ in range(100):
            optimiser.zero_grad()
            contrastive(a, b, scale(), config, shown, label).backward()
            optimiser.step()
        cosine = F.normalize(a.detach(), dim=1) @ F.normalize(b.detach(), dim=1).T
        alike = (label[:, None] == label[None]) & ~torch.eye(6, dtype=torch.bool)
        within[share] = float(cosine[alike].mean())
        assert cosine.diagonal().mean() > 0.5
    assert within[0.8] > within[0.0] + 0.4
