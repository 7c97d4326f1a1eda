"""The phases of a training batch as CUDA graphs: what is drawn goes into tensors at fixed addresses, then one launch.

For the bench alone: a captured phase keeps no count of steps left out, and neither p nor the weight of a transition may
move the shapes or constants of what was captured. Training itself stays without graphs.
"""

import torch
from torch import Tensor

from eeg_gan.stages import gan_steps


class Inputs:
    """Tensors at fixed addresses on the device, into which each batch's draws are copied."""

    def __init__(self, device: torch.device):
        self.device, self.held = device, {}

    def hold(self, name: str, value: Tensor) -> Tensor:
        if name not in self.held:
            self.held[name] = torch.empty_like(value, device=self.device)
        return self.held[name].copy_(value)


class HeldBatch(gan_steps.Batch):
    """A batch that draws everything at once into held tensors; the steps find it there."""

    def __init__(self, config, players, conditions, images: int, inputs: Inputs):
        super().__init__(config, players, conditions, images)
        hold = inputs.hold
        self.held_fakes = {who: super(HeldBatch, self).fakes(who) for who in ("d", "g")}
        for who, fakes in self.held_fakes.items():
            fakes.z, fakes.c = hold(f"z {who}", fakes.z), hold(f"c {who}", fakes.c)
            fakes.noise = [hold(f"noise {who} {i}", layer) for i, layer in enumerate(fakes.noise)]
            if config.style_mixing:
                z, crossover = fakes.mixing
                fakes.mixing = hold(f"mixed z {who}", z), hold(f"crossover {who}", crossover)
        purposes = ("real-d", "fake-d", "real-r1", "fake-g")
        drawn = {purpose: super(HeldBatch, self).draws(purpose) for purpose in purposes}
        self.held_draws = {
            purpose: {name: hold(f"{purpose} {name}", value) for name, value in draws.items()}
            for purpose, draws in drawn.items()
        }

    def fakes(self, who: str, size: int | None = None) -> gan_steps.Fakes:
        return self.held_fakes[who]

    def draws(self, purpose: str) -> dict[str, Tensor]:
        return self.held_draws[purpose]


class Phase:
    """One step of a network: as it is at first, then captured once, then replayed.

    `step` is called without arguments and reads held tensors. Optimisers must be capturable.
    """

    def __init__(self, warm_up: int = 2):
        self.left, self.graph, self.values = warm_up, None, None

    def __call__(self, step) -> dict[str, Tensor]:
        if self.left > 0:
            self.left -= 1
            return self._beside(step)
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):  # records, and computes nothing
                self.values = step()
        self.graph.replay()
        return self.values

    def _beside(self, step) -> dict[str, Tensor]:
        """On a stream of its own, as capturing will be: libraries then have their work space."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            values = step()
        torch.cuda.current_stream().wait_stream(stream)
        return values
