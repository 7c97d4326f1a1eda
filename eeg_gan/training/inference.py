"""Running a network over a whole split, on any number of processes, without touching the training stream."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from eeg_gan.distributed import max_over_ranks, rank, sum_over_ranks, world_size


@torch.no_grad()
def over_all(forward: Callable[[dict], Tensor], fetch: Callable[[list[int]], dict], total: int, batch: int) -> Tensor:
    """forward(fetch(indices)) over 0..total-1 -> float32 [total, F] on the CPU, in order, equal on every rank.

    Each rank works on consecutive indices; the parts meet by a sum with zeros, which is exact.
    """
    first, last = rank() * total // world_size(), (rank() + 1) * total // world_size()
    parts = [
        forward(fetch(list(range(start, min(start + batch, last))))).float().cpu()
        for start in range(first, last, batch)
    ]
    if world_size() == 1:
        return torch.cat(parts)
    whole = torch.zeros(total, int(max_over_ranks(parts[0].shape[-1] if parts else 0)))
    if parts:
        whole[first:last] = torch.cat(parts)
    return sum_over_ranks(whole)


class evaluating:
    """`with evaluating(net):` puts a network into evaluation mode and gives it back as it was."""

    def __init__(self, module: nn.Module):
        self.module, self.former = module, module.training

    def __enter__(self) -> nn.Module:
        return self.module.eval()

    def __exit__(self, *_: object) -> None:
        self.module.train(self.former)


def draw_by_library(seed: int) -> None:
    """Seeds what a library draws by itself (dropout) for one step; called with a computed seed, never carried on."""
    torch.manual_seed(seed)
