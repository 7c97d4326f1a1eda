"""Trials per second of `encode`, beside the same network in a bare loop that looks at its training set every epoch.

    python tests/bench/encode.py [--encoders lstm cnn] [--turns 5] [--batch 256] [--cnn-batch 64] [--json FILE]

128 x 440 trials of 40 classes, the paper's networks and its published loss, 2 threads. Ours is `encode.run` itself:
shards, balanced batches, mining, logging. The bare loop holds the trials in memory as one tensor and calls the miner
and the loss of pytorch-metric-learning; after each epoch it encodes its training set again and clusters it, as the
paper's published code does. Both take turns, step by step, in one process; figures are medians without the first turn,
by the clock and by the process's CPU time, which other programs on the machine disturb less.

An epoch is counted on 7,959 trials (EEGCVPR40): ours with its share of an evaluation every 80,000 trials (both splits
encoded, k-means, kNN, SVM), theirs with the forward pass and k-means over the training set. A cnn needs 60 MB a trial,
hence its smaller batch. The share of the triplet loss at batch 1024 is of four steps of 256 trials.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time

CHANNELS, TIMES, CLASSES = 128, 440, 40
TRAIN, VAL, EVERY = 7959, 1994, 80_000  # trials of EEGCVPR40; trials between two evaluations in configs/encode
ROUNDS = 3  # of what is timed alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--encoders", nargs="+", default=["lstm", "cnn"])
    parser.add_argument("--turns", type=int, default=5, help="steps of each side, after a first one")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--cnn-batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", help="for the shards; a temporary one by default")
    parser.add_argument("--json")
    words = parser.parse_args()
    import torch

    torch.set_num_threads(words.threads)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {words.threads} threads")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # waiting threads would count as CPU time
    alone = {"classifiers_s": classifiers_s(), "kmeans_s": kmeans_s(), "triplet": triplet_rows()}
    with tempfile.TemporaryDirectory(dir=words.folder) as folder:
        write(folder, max(2 * words.batch, 2 * words.cnn_batch))
        rows = [
            measured(folder, name, words.cnn_batch if name == "cnn" else words.batch, words.turns, alone)
            for name in words.encoders
        ]
    if words.json:
        about = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        about |= {"torch": torch.__version__, "threads": words.threads, "turns": words.turns}
        with open(words.json, "w") as file:
            json.dump({**about, **alone, "encoders": rows}, file, indent=1)


def write(folder: str, n_trials: int) -> None:
    """Shards of noise, the class in its first electrode."""
    import numpy as np

    from eeg_gan.data.card import Card
    from eeg_gan.data.shards import write_shards
    from eeg_gan.data.trial import Sample

    random = np.random.default_rng(0)
    names = tuple(f"E{i}" for i in range(CHANNELS)), tuple(f"c{i}" for i in range(CLASSES))
    card = Card("bench", 1000.0, names[0], "event-randomised", names[1], "CC0")

    def samples(split: str, n: int):
        for i in range(n):
            eeg = random.normal(size=(CHANNELS, TIMES)).astype(np.float32)
            eeg[0] += np.sin(np.arange(TIMES) * (i % CLASSES + 1) / 20)
            yield Sample(f"{split}{i:06d}", eeg, None, {"label": i % CLASSES, "subject": "s"})

    sizes = {"train": n_trials, "val": 2 * CLASSES}
    splits = {split: samples(split, n) for split, n in sizes.items()}
    write_shards(f"{folder}/shards", splits, 256, card, {"sfreq": 1000.0}, {"digest": "bench"}, "float32")


class Bare:
    """The loop that needs no project: a tensor, a network, a miner, a loss, Adam."""

    def __init__(self, index: str, config):
        import torch
        from pytorch_metric_learning.distances import CosineSimilarity
        from pytorch_metric_learning.losses import TripletMarginLoss
        from pytorch_metric_learning.miners import MultiSimilarityMiner

        from eeg_gan.data.loader import Reader
        from eeg_gan.data.shards import Shards
        from eeg_gan.models.eeg import build_encoder

        reader = Reader(Shards(index, ("train",), verify="size"), "train")
        self.eeg, self.labels = reader.eeg_all(), torch.from_numpy(reader.labels)
        self.net = build_encoder(config.encoder, CHANNELS, TIMES)
        self.miner, self.loss = MultiSimilarityMiner(0.1, distance=CosineSimilarity()), TripletMarginLoss(0.05)
        self.optimiser = torch.optim.Adam(self.net.parameters(), 3e-4)
        self.batch, self.order = config.classes_per_batch * config.trials_per_class, []

    def step(self) -> float:
        import torch

        if not self.order:
            self.order = list(torch.randperm(len(self.eeg) // self.batch * self.batch).split(self.batch))
        own = self.order.pop()
        z, labels = self.net(self.eeg[own]), self.labels[own]
        loss = self.loss(z, labels, self.miner(z, labels))
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.item()

    def encode(self) -> None:
        """One batch of the second look at the training set."""
        import torch

        with torch.no_grad():
            self.net(self.eeg[: self.batch])


class Turns:
    """Stands where the progress bar of `encode` was: after each of our steps the bare loop takes one."""

    def __init__(self, bare: Bare):
        self.bare, self.ours, self.theirs, self.again = bare, [], [], []

    def update(self, done: int, note: str = "") -> None:
        self.ours.append(since(self.mark))
        self.theirs.append(timed(self.bare.step))
        self.again.append(timed(self.bare.encode))
        self.mark = now()

    def __enter__(self) -> "Turns":
        self.mark = now()
        return self

    def __exit__(self, *_: object) -> None:
        pass


def measured(folder: str, name: str, batch: int, turns: int, alone: dict) -> dict:
    from eeg_gan import config as configs
    from eeg_gan.stages import encode

    per_class = 8 if batch >= 256 else 4
    keys = {
        "run_dir": f"{folder}/{name}",
        "loader": {"index": f"{folder}/shards/index.json"},
        "encoder": {"name": name, "keep_time": False},
        "classes_per_batch": batch // per_class,
        "trials_per_class": per_class,
        "total_images": batch * (turns + 1),
        "evaluate_every": 10**9,
        "checkpoint_every": 10**9,
    }
    config = configs.from_dict(encode.Config, keys, "bench")
    sides = Turns(Bare(keys["loader"]["index"], config))
    whole, encode.runtime.Runtime.bar = encode.runtime.Runtime.bar, lambda *_, **__: sides
    evaluation, encode.evaluate = (
        encode.evaluate,
        lambda *_: {"kmeans_accuracy": 0.0, "knn_accuracy": 0.0, "svm_accuracy": 0.0},
    )
    try:
        encode.run(config)
    finally:
        encode.runtime.Runtime.bar, encode.evaluate = whole, evaluation
    return summed_up(name, batch, sides, alone)


def summed_up(name: str, batch: int, sides: Turns, alone: dict) -> dict:
    row = {
        "encoder": name,
        "batch": batch,
        "clock": figures(0, batch, sides, alone),
        "cpu": figures(1, batch, sides, alone),
    }
    for clock in ("clock", "cpu"):
        own, shares = row[clock], row[clock]["triplet_share_at_1024"]
        speed = f"ours {own['ours_trials_per_s']:.1f} trials/s, bare {own['bare_trials_per_s']:.1f}"
        step = f"step {own['step_ratio']:.3f} of the bare one"
        epoch = f"epoch {own['ours_epoch_s']:.0f} s, bare {own['bare_epoch_s']:.0f} s: {own['epoch_ratio']:.2f}x"
        said = ", ".join(f"{loss} {share:.1%}" for loss, share in shares.items())
        print(f"{name}, batch {batch}, {clock}: {speed}; {step}; {epoch}; triplet loss at 1024: {said}", flush=True)
    return row | {"turns_s": {"ours": sides.ours, "bare": sides.theirs, "encode_again": sides.again}}


def figures(clock: int, batch: int, sides: Turns, alone: dict) -> dict:
    """By the clock (0) or by CPU time (1)."""
    turns = [[turn[clock] for turn in own[1:]] for own in (sides.ours, sides.theirs, sides.again)]
    ours, theirs, again = map(statistics.median, turns)
    evaluation = (TRAIN + VAL) / batch * again + alone["classifiers_s"][clock]
    epoch = TRAIN / batch * ours + TRAIN / EVERY * evaluation
    bare = TRAIN / batch * (theirs + again) + alone["kmeans_s"][clock]
    return {
        "ours_trials_per_s": batch / ours,
        "bare_trials_per_s": batch / theirs,
        "step_ratio": statistics.median(a / b for a, b in zip(*turns[:2], strict=True)),  # of neighbouring turns
        "ours_epoch_s": epoch,
        "bare_epoch_s": bare,
        "epoch_ratio": bare / epoch,
        "triplet_share_at_1024": {
            row["loss"]: row["seconds"][clock] / (1024 / batch * ours)
            for row in alone["triplet"]
            if row["batch"] == 1024
        },
    }


def triplet_rows() -> list[dict]:
    """Seconds forward and backward, and the growth of the process's peak memory, each in a process of its own."""
    rows = []
    for loss in ("mined", "semi_hard"):
        for batch in (1024, 4096):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                took, peak = pool.apply(triplet_alone, (loss, batch))
            rows.append({"loss": loss, "batch": batch, "seconds": took, "peak_mb": peak})
            print(
                f"triplet {loss}, batch {batch}: {took[0]:.3f} s, CPU {took[1]:.3f} s, peak {peak:.0f} MB more",
                flush=True,
            )
    return rows


def triplet_alone(loss: str, batch: int) -> tuple[tuple[float, float], float]:
    import torch

    from eeg_gan.losses.triplet import TripletConfig, triplet

    torch.set_num_threads(2)
    config, labels = TripletConfig(mining=loss), torch.arange(batch) % CLASSES
    z = (torch.randn(CLASSES, 128)[labels] + torch.randn(batch, 128)).requires_grad_(True)

    def once(z, labels) -> None:
        triplet(z, labels, config).backward()

    once(z[:64].detach().requires_grad_(True), labels[:64])
    before = peak_mb()
    times = [timed(lambda: once(z, labels)) for _ in range(ROUNDS)]
    return tuple(map(statistics.median, zip(*times, strict=True))), peak_mb() - before


def classifiers_s() -> tuple[float, float]:
    """What an evaluation takes beside encoding: k-means, kNN and SVM on as many features as EEGCVPR40 has."""
    from eeg_gan.metrics.embedding import clusters, knn_accuracy, linear_svm

    (z_train, y_train), (z_val, y_val) = (features(n, seed) for seed, n in enumerate((TRAIN, VAL)))

    def judged() -> None:
        clusters(z_val, CLASSES, 0)
        knn_accuracy(z_train, y_train, z_val, y_val)
        linear_svm(z_train, y_train, z_val, y_val)

    return timed(judged)


def kmeans_s() -> tuple[float, float]:
    from sklearn.cluster import KMeans

    z, _ = features(TRAIN, 0)
    return timed(lambda: KMeans(CLASSES, random_state=45).fit_predict(z))


def features(n: int, seed: int):
    import numpy as np

    centres, random = np.random.default_rng(9).normal(size=(CLASSES, 128)), np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    z = centres[labels] + 1.5 * random.normal(size=(n, 128))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32), labels


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(mark: tuple[float, float]) -> tuple[float, float]:
    """Seconds by the clock and of this process's CPU time."""
    return tuple(b - a for a, b in zip(mark, now(), strict=True))


def timed(work) -> tuple[float, float]:
    mark = now()
    work()
    return since(mark)


def peak_mb() -> float:
    """Of this process since it began; ru_maxrss would know the parent's."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    main()
