"""Images per second of full training steps (D, R1 every 16, G, averages), against the steps as usually written.

    python tests/bench/gan_step.py [--sizes 32 64 128] [--seconds 20] [--json FILE]

ours: compiled operators, demodulation as one matrix product. plain: the PyTorch twins and, per sample, the materialised
modulated weights for demodulation. Both sides take turns in one process on the same networks (channel_base 4096,
channel_max 128) with the bgcfnc pipe at p = 0.5. On a GPU the times are those of CUDA events.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import time
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from eeg_gan import config as configs
from eeg_gan.augment.condition import Conditions
from eeg_gan.models.stylegan2 import layers
from eeg_gan.ops import library
from eeg_gan.stages import gan_steps
from eeg_gan.stages.gan_config import Config

BATCHES = {32: 16, 64: 8, 128: 4}
CYCLE = 16  # batches between two R1 steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--seconds", type=float, default=20.0, help="of each side at each size, at least two cycles")
    parser.add_argument("--batch", type=int, help="instead of 16, 8, 4 at 32, 64, 128 pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json")
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = platform.processor() or platform.machine()
    print(f"{machine}, torch {torch.__version__}, {device}, {words.threads} threads")
    print(f"operators: {'compiled' if library.has_kernel('bias_act', device.type) else library.why_not(device.type)}")
    print("size | batch | ours images/s | plain images/s | ratio | s/kimg | convolutions | peak memory")
    rows = [measured(size, words.batch or BATCHES.get(size, 8), words.seconds, device) for size in words.sizes]
    if words.json:
        about = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "device": str(device)}
        with open(words.json, "w") as file:
            json.dump({**about, "torch": torch.__version__, "threads": words.threads, "rows": rows}, file, indent=1)


def measured(size: int, batch: int, seconds: float, device: torch.device) -> dict:
    game = Game(size, batch, device)
    sides = {"ours": nullcontext, "plain": plain}
    times = {name: [] for name in sides}
    for side in sides.values():
        with side():
            game.cycle()
    start = time.perf_counter()
    while time.perf_counter() - start < 2 * seconds or len(times["plain"]) < 2:
        for name, side in sides.items():
            with side():
                times[name].append(game.cycle())
    rate = {name: CYCLE * batch / statistics.median(own) for name, own in times.items()}
    row = {
        "size": size,
        "batch": batch,
        **rate,
        "ratio": rate["ours"] / rate["plain"],
        "convolution_share": game.share_of_convolutions(),
        "peak_memory_mb": peak_mb(device),
    }
    speed = f"{rate['ours']:.1f} | {rate['plain']:.1f} | {row['ratio']:.2f} | {1000 / rate['ours']:.1f}"
    share, memory = row["convolution_share"], row["peak_memory_mb"]
    print(f"{size} | {batch} | {speed} | {share:.0%} | {memory:.0f} MB", flush=True)
    return row


class Game:
    """Both networks and random pictures, conditioned on 128 numbers."""

    def __init__(self, size: int, batch: int, device: torch.device):
        widths = {"channel_base": 4096, "channel_max": 128}
        keys = {
            "run_dir": "-",
            "loader": {"index": "-"},
            "features": "-",
            "generator": {"z_dim": 128, "w_dim": 128, **widths},
            "discriminator": {"mbstd_group": 4, **widths},
            "augment": {"mode": "fixed", "p": 0.5, "pipe": "bgcfnc"},
            "batch": batch,
        }
        self.config = configs.from_dict(Config, keys, "bench")
        features = torch.nn.functional.normalize(torch.randn(512, 128), dim=1)
        self.conditions = Conditions(features, range(512), self.config.condition)
        self.players = gan_steps.build(self.config, size, features, device)
        self.real = torch.rand(batch, 3, size, size, device=device) * 2 - 1
        self.device, self.images = device, 0

    def cycle(self) -> float:
        """Seconds of 16 batches, with R1 in the first."""
        self._wait()
        start = time.perf_counter()
        for number in range(CYCLE):
            self.batch(number == 0)
        self._wait()
        return time.perf_counter() - start

    def batch(self, with_r1: bool) -> None:
        batch = gan_steps.Batch(self.config, self.players, self.conditions, self.images)
        trials = torch.arange(self.images, self.images + self.config.batch) % 512
        c = batch.real_conditions(trials).to(self.device)
        gan_steps.step_discriminator(batch, self.real, c)
        if with_r1:
            gan_steps.step_r1(batch, self.real, c)
        gan_steps.step_generator(batch)
        gan_steps.update_averages(self.players, self.config, self.images)
        self.images += self.config.batch

    def share_of_convolutions(self) -> float:
        """Of the operators' own time in one batch with R1."""
        kinds = [torch.profiler.ProfilerActivity.CPU]
        kinds += [torch.profiler.ProfilerActivity.CUDA] if self.device.type == "cuda" else []
        with torch.profiler.profile(activities=kinds) as found:
            self.batch(True)
            self._wait()
        own = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        times = {event.key: getattr(event, own) for event in found.key_averages()}
        return sum(t for key, t in times.items() if "conv" in key) / sum(times.values())

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


@contextmanager
def plain():
    """The PyTorch twins, and demodulation from weights that are materialised for every sample."""
    whole, layers.demodulation = layers.demodulation, materialised
    try:
        with library.twins():
            yield
    finally:
        layers.demodulation = whole


def materialised(weight: Tensor, style: Tensor) -> Tensor:
    own = weight[None] * style.to(weight.dtype)[:, None, :, None, None]
    return (own.square().sum(dim=(2, 3, 4)) + layers.EPS).rsqrt()


def peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
