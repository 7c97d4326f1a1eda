"""How fast a stage trains, how long it waits for data, how much memory it takes, and means of what its steps tell."""

import contextlib
import resource
import time
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class Meter:
    """Readings since the last one. A step lasts from its wait for data to its end; what is between steps counts not."""

    def __init__(self, device: torch.device, images: int = 0):
        self.device, self.images = device, images
        self._began: float | None = None
        self._clear()

    def _clear(self) -> None:
        self._waited = self._busy = 0.0
        self._trained = 0
        self._sums: dict[str, tuple[Tensor | float, int]] = {}

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the reading of a batch, with which a step begins."""
        self._began = time.monotonic()
        yield
        self._waited += time.monotonic() - self._began

    def stepped(self, images: int) -> None:
        """A step has ended at this count of images."""
        if self._began is not None:
            self._busy += time.monotonic() - self._began
            self._trained += max(images - self.images, 0)
        self._began, self.images = None, images

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """To means that `read` gives; tensors are looked at only then."""
        for tag, value in values.items():
            total, count = self._sums.get(tag, (0.0, 0))
            self._sums[tag] = (total + value, count + 1)

    def gradients(self, name: str, module: nn.Module) -> None:
        """The norm of a network's gradient, after its backward pass."""
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        if grads:
            self.add({f"gradient/{name} (norm)": torch.nn.utils.get_total_norm(grads)})

    def read(self) -> dict[str, float]:
        """Means and rates since the last reading, by tag with unit; `images per s` are of all processes together."""
        found = {tag: float(total / count) for tag, (total, count) in self._sums.items()}
        if self._busy:
            found["speed/training (images per s)"] = self._trained / self._busy
            found["speed/waiting for data (0 to 1)"] = min(self._waited / self._busy, 1.0)
        found["memory/process peak (GB)"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kB on Linux
        if self.device.type == "cuda":
            found["memory/GPU peak (GB)"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        self._clear()
        return found
