import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from pytorch_metric_learning.reducers import MeanReducer
from pytorch_metric_learning.utils.loss_and_miner_utils import get_all_triplets_indices
from torch.utils._python_dispatch import TorchDispatchMode

from eeg_gan.losses import triplet as module
from eeg_gan.losses.triplet import TripletConfig, cross_entropy, mined_triplet, semi_hard_triplet, triplet


def batch(n, classes, seed, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, 12, generator=generator)
    return centres[labels] + spread * torch.randn(n, 12, generator=generator), labels


def value_and_gradient(loss, z, *rest):
    z = z.clone().requires_grad_(True)
    value = loss(z, *rest)
    value.backward()
    return value.detach(), z.grad


def published_loss(z, labels):
    pairs = MultiSimilarityMiner(epsilon=0.1, distance=CosineSimilarity())(z, labels)
    return TripletMarginLoss(margin=0.05)(z, labels, pairs)


def library_semi_hard(z, labels, margin=1.0):
    """The library's squared distances and triplet loss, on one of all its triplets for each ordered positive pair."""
    distance = LpDistance(normalize_embeddings=True, p=2, power=2)
    a, p, n = get_all_triplets_indices(labels)
    d = distance(z.detach().double())
    pair, d_ap, d_an = a * len(z) + p, d[a, p], d[a, n]
    further = torch.where(d_an > d_ap, d_an, torch.inf)  # the nearest that is further than p
    best = torch.full((len(z) ** 2,), torch.inf, dtype=d.dtype).scatter_reduce(0, pair, further, "amin")
    most = torch.full((len(z) ** 2,), -torch.inf, dtype=d.dtype).scatter_reduce(0, pair, d_an, "amax")
    wanted = torch.where(best[pair] < torch.inf, best[pair], most[pair])
    kept = d_an == wanted
    loss = TripletMarginLoss(margin, distance=distance, reducer=MeanReducer())
    return loss(z, labels, (a[kept], p[kept], n[kept]))


class Largest(TorchDispatchMode):
    """Notes the largest tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            self.numel = max(self.numel, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return out


def slow_semi_hard(z, labels, margin=1.0):
    z = F.normalize(z, dim=1)
    d = (z[:, None] - z[None]).square().sum(2)
    terms = []
    for a in range(len(z)):
        negatives = [n for n in range(len(z)) if labels[n] != labels[a]]
        for p in (p for p in range(len(z)) if p != a and labels[p] == labels[a]):
            further = [n for n in negatives if d[a, n] > d[a, p]]
            n = min(further, key=lambda n: d[a, n]) if further else max(negatives, key=lambda n: d[a, n])
            terms.append(F.relu(margin + d[a, p] - d[a, n]))
    return torch.stack(terms).sum() / len(terms)


@pytest.mark.parametrize(
    "n, classes, spread", [(8, 2, 1.0), (32, 4, 0.3), (64, 10, 1.0), (64, 40, 3.0), (48, 3, 0.05), (256, 40, 0.5)]
)
def test_mined_triplet_is_the_published_loss(n, classes, spread):
    z, labels = batch(n, classes, seed=n + classes, spread=spread)
    ours, theirs = value_and_gradient(mined_triplet, z, labels), value_and_gradient(published_loss, z, labels)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("n, classes, spread", [(8, 2, 1.0), (24, 4, 0.3), (40, 10, 2.0)])
def test_semi_hard_triplet_is_its_definition(n, classes, spread):
    z, labels = batch(n, classes, seed=n, spread=spread)
    ours, slow = value_and_gradient(semi_hard_triplet, z, labels), value_and_gradient(slow_semi_hard, z, labels)
    torch.testing.assert_close(ours[0], slow[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours[1], slow[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n, classes, spread", [(24, 4, 0.3), (128, 10, 1.0), (256, 40, 2.0)])
def test_semi_hard_triplet_is_that_of_the_library_on_its_triplets(n, classes, spread):
    z, labels = batch(n, classes, seed=n, spread=spread)
    ours, theirs = value_and_gradient(semi_hard_triplet, z, labels), value_and_gradient(library_semi_hard, z, labels)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("loss", [mined_triplet, semi_hard_triplet])
def test_no_tensor_outgrows_a_chunk_of_anchors_by_the_batch(loss, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 64)
    z, labels = batch(256, 16, seed=2)
    z.requires_grad_(True)
    with Largest() as seen:
        loss(z, labels).backward()
    assert 64 * 256 <= seen.numel <= 64 * 256 + 256


@pytest.mark.parametrize("loss", [mined_triplet, semi_hard_triplet])
def test_chunks_of_anchors_change_nothing(loss, monkeypatch):
    z, labels = batch(50, 5, seed=1)
    whole = value_and_gradient(loss, z, labels)
    monkeypatch.setattr(module, "CHUNK", 7)
    parts = value_and_gradient(loss, z, labels)
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [mined_triplet, semi_hard_triplet])
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [0]])
def test_batches_without_triplets_cost_nothing(loss, labels):
    z = torch.randn(len(labels), 4, requires_grad=True)
    value = loss(z, torch.tensor(labels))
    value.backward()
    assert value == 0 and torch.equal(z.grad, torch.zeros_like(z))


@pytest.mark.parametrize("loss", [mined_triplet, semi_hard_triplet])
def test_identical_embeddings_give_finite_gradients(loss):
    z = torch.ones(6, 4).requires_grad_(True)
    value = loss(z, torch.tensor([0, 0, 1, 1, 2, 2]))
    value.backward()
    assert torch.isfinite(z.grad).all()
    torch.testing.assert_close(value.detach(), torch.tensor(1.0 if loss is semi_hard_triplet else 0.05))


def test_semi_hard_by_hand():
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])  # squared distances: 0-1 2, 0-2 4, 1-2 2
    value = semi_hard_triplet(z, torch.tensor([0, 0, 1]))
    # anchor 0: d_ap 2, negative at 4: relu(1 + 2 - 4) = 0; anchor 1: no negative beyond 2, furthest is 2: 1
    torch.testing.assert_close(value, torch.tensor(0.5))


def test_config_chooses_the_loss_and_its_margin():
    z, labels = batch(32, 4, seed=3)
    assert triplet(z, labels, TripletConfig()) == mined_triplet(z, labels, 0.1, 0.05)
    assert triplet(z, labels, TripletConfig(mining="semi_hard")) == semi_hard_triplet(z, labels, 1.0)
    assert triplet(z, labels, TripletConfig(margin=0.3)) == mined_triplet(z, labels, 0.1, 0.3)
    with pytest.raises(ValueError, match="margin"):
        TripletConfig(margin=-1.0)


def test_losses_stay_in_float32_under_autocast():
    z, labels = batch(32, 4, seed=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = mined_triplet(z, labels)
    assert inside.dtype == torch.float32 and inside == mined_triplet(z, labels)


def test_cross_entropy_of_even_logits_is_log_k():
    torch.testing.assert_close(cross_entropy(torch.zeros(4, 10), torch.arange(4)), torch.tensor(10.0).log())
