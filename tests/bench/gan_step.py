"""Images per second of full training steps (D, R1 every 16, G, averages), against the steps as usually written.

    python tests/bench/gan_step.py [--sizes 32 64 128] [--seconds 40] [--json FILE]

ours: compiled operators, demodulation as one matrix product. plain: the PyTorch twins and, per sample, the materialised
modulated weights for demodulation. Both take turns in one process on the same networks (channel_base 4096, channel_max
128) with the bgcfnc pipe at p = 0.5. Rates are those of the fastest turn; the ratio is the median over turns of the
two sides' seconds in it. Other work on the machine slows both; processor time (CPU s) sees less of it. Peak memory is
that of a process which runs our side alone. On a GPU a third side launches the phases as CUDA graphs.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line sets it: other programs need the cores too

import torch
from gan_graphs import HeldBatch, Inputs, Phase
from torch import Tensor

from eeg_gan import config as configs
from eeg_gan.augment.condition import Conditions
from eeg_gan.models.stylegan2 import layers
from eeg_gan.ops import library
from eeg_gan.stages import gan_steps
from eeg_gan.stages.gan_config import Config
from eeg_gan.training import heap

BATCHES = {32: 16, 64: 8, 128: 4}
CYCLE = 16  # batches between two R1 steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--seconds", type=float, default=40.0, help="at each size, at least three turns")
    parser.add_argument("--batch", type=int, help="instead of 16, 8, 4 at 32, 64, 128 pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="rows of other sizes that it holds are kept")
    parser.add_argument("--peak", action="store_true", help="prints the peak memory of our side in MB, and no more")
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    heap.keep_freed()  # both sides, as every stage does on a CPU
    if words.peak:
        print(peak_mb(words.sizes[0], words.batch or BATCHES.get(words.sizes[0], 8), device))
        return
    about = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "device": str(device)}
    about |= {"torch": torch.__version__, "threads": words.threads}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(f"operators: {'compiled' if library.has_kernel('bias_act', device.type) else library.why_not(device.type)}")
    print("size | batch | ours images/s | plain images/s | ratio | in CPU s | s/kimg | convolutions | peak memory")
    for size in words.sizes:
        row = measured(size, words.batch or BATCHES.get(size, 8), words.seconds, device)
        row["peak_memory_mb"], row["of_which_before_the_networks_mb"] = peak_apart(words, size)
        show(row)
        if words.json:
            add_row(words.json, about, row)


def measured(size: int, batch: int, seconds: float, device: torch.device) -> dict:
    game = Game(size, batch, device)
    sides = {"ours": nullcontext, "plain": plain}
    if device.type == "cuda":
        sides["graphs"] = game.captured
    turns = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(turns) < 4:
        turns.append({name: game.turn(side) for name, side in sides.items()})
    turns = turns[1:]  # the first one warms up
    row = {"size": size, "batch": batch, "turns": len(turns)}
    row |= {f"{name}_images_per_s": batch / min(turn[name][0] for turn in turns) for name in sides}
    row["ratio"] = statistics.median(turn["plain"][0] / turn["ours"][0] for turn in turns)
    if device.type == "cpu":
        row["ratio_cpu_seconds"] = statistics.median(turn["plain"][1] / turn["ours"][1] for turn in turns)
    return row | {"convolution_share": game.share_of_convolutions()}


def show(row: dict) -> None:
    rate = row["ours_images_per_s"]
    print(
        f"{row['size']} | {row['batch']} | {rate:.1f} | {row['plain_images_per_s']:.1f} | {row['ratio']:.2f} | "
        f"{row.get('ratio_cpu_seconds', float('nan')):.2f} | {1000 / rate:.1f} | {row['convolution_share']:.0%} | "
        f"{row['peak_memory_mb']:.0f} MB ({row['of_which_before_the_networks_mb']:.0f} before the networks)"
        + (f" | graphs {1000 / row['graphs_images_per_s']:.2f} s/kimg" if "graphs_images_per_s" in row else ""),
        flush=True,
    )


def add_row(path: Path, about: dict, row: dict) -> None:
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = sorted([r for r in before if r["size"] != row["size"]] + [row], key=lambda r: r["size"])
    path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


class Game:
    """Both networks and random pictures, conditioned on 128 numbers."""

    def __init__(self, size: int, batch: int, device: torch.device, precision: str = "auto"):
        widths = {"channel_base": 4096, "channel_max": 128}
        keys = {
            "run_dir": "-",
            "loader": {"index": "-"},
            "features": "-",
            "generator": {"z_dim": 128, "w_dim": 128, **widths},
            "discriminator": {"mbstd_group": 4, **widths},
            "augment": {"mode": "fixed", "p": 0.5, "pipe": "bgcfnc"},
            "batch": batch,
            "precision": precision,
        }
        self.config = configs.from_dict(Config, keys, "bench")
        features = torch.nn.functional.normalize(torch.randn(512, 128), dim=1)
        self.conditions = Conditions(features, range(512), self.config.condition)
        self.players = gan_steps.build(self.config, size, features, device)
        self.real = torch.rand(batch, 3, size, size, device=device) * 2 - 1
        self.device, self.images = device, 0
        self.inputs, self.phases = Inputs(device), None

    def turn(self, side) -> tuple[float, float]:
        """Seconds, and seconds of processors, of one batch in the mean over a cycle, with R1 in one of 16."""
        repeat = 1 if self.device.type == "cpu" else 8
        with side():
            without, with_r1 = self._timed(False, repeat), self._timed(True, repeat)
        return tuple(((CYCLE - 1) * a + b) / CYCLE for a, b in zip(without, with_r1, strict=True))

    def _timed(self, with_r1: bool, repeat: int) -> tuple[float, float]:
        self._wait()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(repeat):
            self.batch(with_r1)
        self._wait()
        return (time.perf_counter() - wall) / repeat, (time.process_time() - cpu) / repeat

    def batch(self, with_r1: bool) -> None:
        parts = self.config, self.players, self.conditions, self.images
        batch = gan_steps.Batch(*parts) if self.phases is None else HeldBatch(*parts, self.inputs)
        run = self.phases or dict.fromkeys(("D", "R1", "G"), lambda step: step())
        trials = torch.arange(self.images, self.images + self.config.batch) % 512
        c = self.inputs.hold("c", batch.real_conditions(trials))
        run["D"](lambda: gan_steps.step_discriminator(batch, self.real, c))
        if with_r1:
            run["R1"](lambda: gan_steps.step_r1(batch, self.real, c))
        run["G"](lambda: gan_steps.step_generator(batch))
        gan_steps.update_averages(self.players, self.config, self.images)
        self.images += self.config.batch

    @contextmanager
    def captured(self):
        """Phases as CUDA graphs, which are kept from turn to turn."""
        if not hasattr(self, "graphs"):
            self.graphs = {name: Phase() for name in ("D", "R1", "G")}
        groups = [g for o in self.players.optimisers().values() for g in o.param_groups]
        for group in groups:
            group["capturable"] = True
        self.phases = self.graphs
        try:
            yield
        finally:
            self.phases = None
            for group in groups:
                group["capturable"] = False

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


def peak_apart(words: argparse.Namespace, size: int) -> list[float]:
    """Peak memory of our side, and what was taken before the networks were there, by a process of its own."""
    command = [sys.executable, __file__, "--peak", "--sizes", str(size), "--threads", str(words.threads)]
    command += ["--batch", str(words.batch)] if words.batch else []
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_mb(size: int, batch: int, device: torch.device) -> list[float]:
    def so_far() -> float:
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        if (status := Path("/proc/self/status")).exists():  # ru_maxrss begins with that of the parent
            return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    before, game = so_far(), Game(size, batch, device)
    for with_r1 in (True, False):
        game.batch(with_r1)
    return [so_far(), before]


if __name__ == "__main__":
    main()
