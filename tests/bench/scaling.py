"""One process against two, of one thread each: images per second, bytes on the wire, and what many GPUs would give.

    python tests/bench/scaling.py [--stages gan encode] [--turns 4] [--size 64] [--json FILE]

gan: full steps at 64 px (D, G, averages, R1 every 4 batches; channel_base 4096, channel_max 128), a global batch of 16.
encode: the paper's LSTM on 128 x 440 trials with its published loss, a global batch of 128. One process and two take
turns on the same machine; while one side works the other waits. strong: the same global batch, that is the same
training. weak: one process has half the batch, as much as each of two. Efficiency is the speed-up over 2, the median
over turns; by processor seconds it is those of one process over those of two together, which other work on the machine
disturbs less. The table of GPUs is computed, not measured: its assumptions are printed and written with it.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import socket
import statistics
import time
from pathlib import Path
from types import SimpleNamespace

CYCLE = 4  # batches of a turn, one of them with R1
BATCH = {"gan": 16, "encode": 128}
SIDES = {"whole": 1, "two": 1, "half": 2}  # one process alone; two together; one with half the batch
ASSUMED = {
    "NVLink_bytes_per_s": 230e9,  # of one GPU in an all-reduce, A100 with NVSwitch
    "network_bytes_per_s": 22e9,  # of one GPU between nodes, 200 Gbit/s InfiniBand each
    "gpus_per_node": 8,
    "latency_s": 2e-5,  # of one buffer's all-reduce on each level of a binary tree
    "bucket_bytes": 25 * 2**20,
    "backward_share": 0.6,  # of a step's time, under which gradients go out
    "gan256_s_per_image": 12.53e-3,  # published: StyleGAN2 at 256 px on one A100
    "encode_flop_per_s": 19.5e12 * 0.1,  # a tenth of an A100's peak in float32
    "gan_images_per_gpu": 8,
    "encode_trials_per_gpu": 128,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stages", nargs="+", default=list(BATCH), choices=list(BATCH))
    parser.add_argument("--turns", type=int, default=4, help="after a first one that warms up")
    parser.add_argument("--size", type=int, default=64, help="gan: pixels")
    parser.add_argument("--overlap", action="store_true", help="gan: gradients go out while backward runs")
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    found = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    for stage in words.stages:
        found[stage] = measured(stage, words)
        show(stage, found[stage])
    found |= {"assumed": ASSUMED, "expected": expected()}
    show_expected(found["expected"])
    if words.json:
        words.json.write_text(json.dumps(found, indent=1) + "\n")


def measured(stage: str, words: argparse.Namespace) -> dict:
    """Turns of all sides; three processes, of which those that have no turn wait for a word."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    pipes, workers = {}, []
    for name, rank, world in (("alone", 0, 1), ("first", 0, 2), ("second", 1, 2)):
        pipes[name], end = spawn.Pipe()
        workers.append(spawn.Process(target=work, args=(end, stage, rank, world, port, words), daemon=True))
        workers[-1].start()
    about = {name: pipe.recv() for name, pipe in pipes.items()}
    rows = [one_turn(pipes) for _ in range(words.turns + 1)][1:]
    for pipe in pipes.values():
        pipe.send(None)
    for worker in workers:
        worker.join()
    return summary(stage, rows, about["first"])


def one_turn(pipes: dict) -> dict:
    """Of each side its (seconds, processor seconds, payload bytes, loopback bytes) of one cycle."""
    row = {}
    for side, parts in SIDES.items():
        names = ("first", "second") if side == "two" else ("alone",)
        for name in names:
            pipes[name].send(parts)
        each = [pipes[name].recv() for name in names]
        row[side] = {
            "s": max(one["s"] for one in each),
            "cpu_s": sum(one["cpu_s"] for one in each),
            "sent": each[0]["sent"],
            "wire": each[0]["wire"],
        }
    return row


def summary(stage: str, rows: list[dict], about: dict) -> dict:
    def median(value) -> float:
        return statistics.median(value(row) for row in rows)

    minimum = about["gradient_bytes"]  # 2 (n - 1) / n of the gradients, with n = 2
    return {
        "global_batch": BATCH[stage],
        "turns": len(rows),
        "images_per_s_one": CYCLE * BATCH[stage] / min(row["whole"]["s"] for row in rows),
        "images_per_s_two": CYCLE * BATCH[stage] / min(row["two"]["s"] for row in rows),
        "efficiency_strong": median(lambda row: row["whole"]["s"] / row["two"]["s"] / 2),
        "efficiency_weak": median(lambda row: row["half"]["s"] / row["two"]["s"]),
        "efficiency_strong_cpu": median(lambda row: row["whole"]["cpu_s"] / row["two"]["cpu_s"]),
        "efficiency_weak_cpu": median(lambda row: 2 * row["half"]["cpu_s"] / row["two"]["cpu_s"]),
        "gradient_bytes_per_step": minimum / CYCLE,
        "reduced_bytes_per_step": rows[0]["two"]["sent"] / CYCLE,
        "reduced_over_gradients": rows[0]["two"]["sent"] / minimum,
        "wire_bytes_per_step_and_process": median(lambda row: row["two"]["wire"]) / 2 / CYCLE,
        "wire_over_minimum": median(lambda row: row["two"]["wire"]) / 2 / minimum,
    }


def work(pipe, stage: str, rank: int, world: int, port: int, words: argparse.Namespace) -> None:
    """A process: does a cycle with the batch divided by each number that comes."""
    if world > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    import torch

    from eeg_gan.training import heap

    torch.set_num_threads(1)
    heap.keep_freed()  # as every stage does on a CPU
    wire = Wire()
    kind = {"gan": GanGame, "encode": EncodeGame}[stage]
    games = {parts: kind(BATCH[stage] // parts, wire, words) for parts in ((1,) if world > 1 else (1, 2))}
    pipe.send({"gradient_bytes": games[1].gradient_bytes})
    while (parts := pipe.recv()) is not None:
        wire.sent, before = 0, loopback()
        clock, processor = time.perf_counter(), time.process_time()
        for number in range(CYCLE):
            games[parts].batch(number)
        found = {"s": time.perf_counter() - clock, "cpu_s": time.process_time() - processor}
        pipe.send({**found, "sent": wire.sent, "wire": loopback() - before})


def loopback() -> int:
    """Bytes that went over the loopback device so far, of all processes of the machine; 0 where it is not told."""
    path = Path("/proc/net/dev")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith("lo:")), 0)


class Wire:
    """Counts what is given to all-reduce and all-gather: payload, without the algorithm's factor 2 (n - 1) / n."""

    def __init__(self):
        import torch.distributed as dist

        self.sent = 0
        for name, place in (("all_reduce", 0), ("all_gather", 1)):
            setattr(dist, name, self._counted(getattr(dist, name), place))

    def _counted(self, function, place: int):
        def call(*arguments, **named):
            tensor = arguments[place]
            self.sent += tensor.numel() * tensor.element_size()
            return function(*arguments, **named)

        return call


class GanGame:
    def __init__(self, batch: int, wire: Wire, words: argparse.Namespace):
        import torch
        from accelerate import Accelerator

        from eeg_gan import config as configs
        from eeg_gan.augment.condition import Conditions
        from eeg_gan.distributed import own_part
        from eeg_gan.stages import gan_steps
        from eeg_gan.stages.gan_config import Config

        Accelerator(cpu=True)
        small = {"channel_base": 4096, "channel_max": 128}
        keys = {"run_dir": "r", "loader": {"index": "i"}, "features": "f", "generator": small, "discriminator": small}
        keys |= {"batch": batch, "r1_every": CYCLE, "augment": {"p": 0.5}, "engine": {"overlap": words.overlap}}
        self.config, self.steps = configs.from_dict(Config, keys, "bench"), gan_steps
        generator = torch.Generator().manual_seed(0)
        c = torch.randn(512, 64, generator=generator)
        self.conditions = Conditions(c, list(range(512)), self.config.condition)
        self.players = gan_steps.build(self.config, words.size, c, torch.device("cpu"))
        part = own_part(batch)
        self.real, self.part = torch.rand(batch, 3, words.size, words.size, generator=generator)[part] * 2 - 1, part
        size = {name: 4 * sum(p.numel() for p in net.parameters()) for name, net in self.players.networks().items()}
        self.gradient_bytes = CYCLE * (size["d"] + size["g"]) + size["d"]  # R1 once a cycle

    def batch(self, number: int) -> None:
        import torch

        images = number * self.config.batch
        batch = self.steps.Batch(self.config, self.players, self.conditions, images)
        c = batch.real_conditions(torch.arange(images, images + self.config.batch) % 512)[self.part]
        self.steps.step_discriminator(batch, self.real, c)
        if number == 0:
            self.steps.step_r1(batch, self.real, c)
        self.steps.step_generator(batch)
        self.steps.update_averages(self.players, self.config, images)


class EncodeGame:
    def __init__(self, batch: int, wire: Wire, words: argparse.Namespace):
        import torch
        from accelerate import Accelerator
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        from eeg_gan import config as configs
        from eeg_gan.distributed import own_part, world_size
        from eeg_gan.models.eeg import EncoderConfig, build_encoder
        from eeg_gan.stages import encode
        from eeg_gan.training import engine, optim
        from eeg_gan.training.meter import Meter

        accelerator = Accelerator(cpu=True)
        config = configs.from_dict(encode.Config, {"run_dir": "r", "loader": {"index": "i"}}, "bench")
        meter = Meter(torch.device("cpu"))
        self.rt = SimpleNamespace(
            accelerator=accelerator, device=torch.device("cpu"), config=config, meter=meter, verb="encode"
        )
        torch.manual_seed(0)
        encoder = build_encoder(EncoderConfig(name="lstm"), 128, 440)
        model = encode.Encoder(encoder, None, config.encoder)
        self.net = engine.prepare(self.rt, model, optim.build(model.parameters(), config.optim))
        self.gradient_bytes = CYCLE * 4 * sum(p.numel() for p in model.parameters())
        if world_size() > 1:

            def counted(state, bucket):
                wire.sent += bucket.buffer().numel() * bucket.buffer().element_size()
                return allreduce_hook(state, bucket)

            self.net.net.register_comm_hook(None, counted)
        self.part = own_part(batch)
        self.eeg = torch.randn(batch, 128, 440, generator=torch.Generator().manual_seed(0))[self.part]
        self.labels, self.step = torch.arange(batch) % 8, encode.step

    def batch(self, number: int) -> None:
        self.step(self.rt, self.net, self.eeg, None, self.labels, self.part, number)


def expected() -> list[dict]:
    """Efficiency at 8, 64 and 512 GPUs: gan at 256 px (auto preset, 8 images a GPU) and encode (128 trials a GPU)."""
    from eeg_gan.models.eeg import EncoderConfig, build_encoder
    from eeg_gan.models.stylegan2.discriminator import Discriminator
    from eeg_gan.models.stylegan2.generator import Generator
    from eeg_gan.stages import gan_presets

    keys = gan_presets.preset("auto", 256, 8)
    shape = {"resolution": 256, "c_dim": 128, "img_channels": 3}
    g, d = Generator(**shape, **keys["generator"]), Discriminator(**shape, **keys["discriminator"])
    size = {name: 4 * sum(p.numel() for p in net.parameters()) for name, net in (("g", g), ("d", d))}
    r1, path, rows = 16, 4, []  # batches between their steps, by the preset
    seconds = ASSUMED["gan256_s_per_image"] * ASSUMED["gan_images_per_gpu"]
    sent = size["d"] * (1 + 1 / r1) + size["g"] * (1 + 1 / path)
    encoder = build_encoder(EncoderConfig(name="lstm"), 128, 440)
    parameters = sum(p.numel() for p in encoder.parameters())
    flop = (
        3 * 2 * parameters * 440 * ASSUMED["encode_trials_per_gpu"]
    )  # each weight once a sample of time; backward twice
    for stage, bytes_, took in (
        ("gan", sent, seconds),
        ("encode", 4 * parameters, flop / ASSUMED["encode_flop_per_s"]),
    ):
        for n in (8, 64, 512):
            rows.append(
                {"stage": stage, "gpus": n, "step_s_alone": took, "bytes": bytes_, **efficiency(n, bytes_, took)}
            )
    return rows


def efficiency(n: int, bytes_: float, seconds: float) -> dict:
    """A ring's 2 (n - 1) / n of the bytes over the slowest link of the way, and the latency of each buffer."""
    inside = n <= ASSUMED["gpus_per_node"]
    speed = ASSUMED["NVLink_bytes_per_s"] if inside else ASSUMED["network_bytes_per_s"]
    buffers = math.ceil(bytes_ / ASSUMED["bucket_bytes"])
    comm = 2 * (n - 1) / n * bytes_ / speed + buffers * math.log2(n) * ASSUMED["latency_s"]
    hidden = min(comm * (1 - 1 / buffers), ASSUMED["backward_share"] * seconds)  # the last buffer has no backward left
    return {
        "communication_s": comm,
        "efficiency_without_overlap": seconds / (seconds + comm),
        "efficiency_with_overlap": seconds / (seconds + comm - hidden),
    }


def show(stage: str, row: dict) -> None:
    print(
        f"{stage}: {row['images_per_s_one']:.1f} images/s by one process, {row['images_per_s_two']:.1f} by two; "
        f"efficiency strong {row['efficiency_strong']:.3f} (processor seconds {row['efficiency_strong_cpu']:.3f}), "
        f"weak {row['efficiency_weak']:.3f} ({row['efficiency_weak_cpu']:.3f}), median of {row['turns']} turns"
    )
    print(
        f"  bytes per step: gradients {row['gradient_bytes_per_step'] / 1e6:.3f} MB, reduced and gathered "
        f"{row['reduced_bytes_per_step'] / 1e6:.3f} MB ({row['reduced_over_gradients']:.3f}), on the wire by each "
        f"process {row['wire_bytes_per_step_and_process'] / 1e6:.3f} MB ({row['wire_over_minimum']:.3f} of the minimum)"
    )


def show_expected(rows: list[dict]) -> None:
    print("computed, not measured: stage | GPUs | step alone s | MB | communication s | without overlap | with overlap")
    for row in rows:
        print(
            f"{row['stage']} | {row['gpus']} | {row['step_s_alone']:.4f} | {row['bytes'] / 1e6:.1f} | "
            f"{row['communication_s']:.5f} | {row['efficiency_without_overlap']:.3f} | "
            f"{row['efficiency_with_overlap']:.3f}"
        )
    print("; ".join(f"{key} {value:g}" for key, value in ASSUMED.items()))


if __name__ == "__main__":
    main()
