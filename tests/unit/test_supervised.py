import pytest
import torch
import torch.nn.functional as F

from eeg_gan.config import UserError
from eeg_gan.losses import supervised as module
from eeg_gan.losses.supervised import SupervisedContrastiveConfig, supervised_contrastive

CONFIG = SupervisedContrastiveConfig(temperature=0.2)


def slow(z, labels, temperature):
    """Equation 2 of Khosla et al., anchor by anchor."""
    z, terms = F.normalize(z, dim=1), []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        if positives:
            whole = torch.logsumexp(torch.stack([z[i] @ z[a] for a in others]) / temperature, 0)
            terms.append(sum(whole - z[i] @ z[p] / temperature for p in positives) / len(positives))
    return torch.stack(terms).mean()


def test_it_is_its_equation_with_gradient():
    generator = torch.Generator().manual_seed(0)
    z, labels = torch.randn(20, 6, generator=generator), torch.randint(5, (20,), generator=generator)
    labels[0] = 9  # an anchor without a positive
    found = []
    for loss in (lambda z: supervised_contrastive(z, labels, CONFIG), lambda z: slow(z, labels, 0.2)):
        own = z.clone().requires_grad_(True)
        value = loss(own)
        value.backward()
        found.append((value.detach(), own.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_batches_that_nothing_can_be_learnt_from_cost_nothing():
    z = torch.randn(4, 3, requires_grad=True)
    for labels in ([0, 0, 0, 0], [0, 1, 2, 3]):
        value = supervised_contrastive(z, torch.tensor(labels), CONFIG)
        value.backward()
        assert value == 0
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_it_stays_in_float32_under_autocast_and_refuses_what_is_too_large(monkeypatch):
    z, labels = torch.randn(8, 4), torch.arange(8) % 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = supervised_contrastive(z, labels, CONFIG)
    assert inside.dtype == torch.float32 and inside == supervised_contrastive(z, labels, CONFIG)
    monkeypatch.setattr(module, "LARGEST", 4)
    with pytest.raises(UserError, match="classes_per_batch"):
        supervised_contrastive(z, labels, CONFIG)
    with pytest.raises(ValueError, match="temperature"):
        SupervisedContrastiveConfig(temperature=0)
