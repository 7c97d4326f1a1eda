"""Are the weights of all ranks the same, bit for bit? One all-reduce of hashes says so.

Ranks that drift apart make no error and no NaN: each trains a network of its own and rank 0 saves one of them.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from eeg_gan.config import UserError
from eeg_gan.distributed import world_size

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def of_networks(networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Weights and buffers by network and name."""
    return {f"{a}.{b}": value for a, network in networks.items() for b, value in network.state_dict().items()}


def check(named: Mapping[str, Tensor], images: int) -> None:
    """Raises where one of the tensors differs between ranks; all ranks call this."""
    if world_size() == 1:
        return
    own = torch.stack([digest(value) for value in named.values()]).cpu()
    low, high = own.clone(), own.clone()
    dist.all_reduce(low, op=dist.ReduceOp.MIN)
    dist.all_reduce(high, op=dist.ReduceOp.MAX)
    if not low.equal(high):
        raise UserError(_differing(list(named), own, images))


@torch.no_grad()
def digest(value: Tensor) -> Tensor:
    """A 64-bit sum [] over the bits of a tensor, each element weighed by its place; equal exactly on any device."""
    bits = value.detach().contiguous().reshape(-1).view(BITS[value.element_size()]).long()
    return (bits * (2 * torch.arange(len(bits), device=bits.device) + 1)).sum()


def _differing(names: list[str], own: Tensor, images: int) -> str:
    """Names each rank that is not like most (like rank 0 where there is no majority) with its first such tensors."""
    of_ranks = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(of_ranks, own)
    rows = torch.stack(of_ranks)
    counts = (rows[:, None] == rows[None]).sum(1)  # [rank, tensor] how many ranks have what this one has
    usual = rows[counts.argmax(0), torch.arange(rows.shape[1])]
    said = []
    for number, unlike in enumerate(rows != usual):
        wrong = [name for name, is_wrong in zip(names, unlike.tolist(), strict=True) if is_wrong]
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            said.append(f"rank {number} in {', '.join(wrong[:3])}{more}")
    return (
        f"at {images} images the weights of the processes are no longer the same: {'; '.join(said)}. What was saved "
        "since the last such check may be mixed; the same command goes on from the last checkpoint, and if this comes "
        "again on the same machine, its memory or its GPU is to be doubted"
    )
