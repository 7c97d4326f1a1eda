"""Samples per second of reading shards, beside memory-mapped arrays and webdataset's own pipeline.

    python tests/bench/loader.py [--samples 2048] [--batches 10] [--rounds 7] [--folder DIR] [--json FILE]

128 x 440 EEG and 128-pixel images, batches of 64, shuffled, warm cache. All sides give float32 EEG [64, 128, 440] and
uint8 images [64, 3, 128, 128]. Shards hold float16 and [H, W, 3]. The memory-mapped arrays hold the same, and once more
what a batch holds, float32 and [3, H, W]: nothing is left to convert, at nearly twice the space. Sides are timed
in turns in one process, all of whose helpers were started before; each round goes through them forth and back and gives
one ratio of each pair, and the median over the rounds is the figure. Where other programs use the machine, the ratios
of CPU time, that of helpers included, are the ones to compare.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))

CHANNELS, TIMES, PIXELS, BATCH, WORKERS = 128, 440, 128, 64, 2


def write(folder: str, n_samples: int) -> None:
    """The same samples as shards with arrays, as shards with PNG, and as two arrays."""
    from PIL import Image

    from eeg_gan.data.card import Card
    from eeg_gan.data.shards import write_shards
    from eeg_gan.data.trial import Sample

    random = np.random.default_rng(0)
    eegs = random.normal(size=(64, CHANNELS, TIMES)).astype(np.float16)
    small = [Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(64)]
    grain = random.integers(-6, 7, (PIXELS, PIXELS, 3))
    images = [(np.asarray(s.resize((PIXELS, PIXELS))).astype(int) + grain).clip(0, 255).astype(np.uint8) for s in small]
    card = Card("bench", 1000.0, tuple(f"E{i}" for i in range(CHANNELS)), "event-randomised", ("a", "b"), "CC0")

    def samples() -> Iterator[Sample]:
        for i in range(n_samples):
            yield Sample(f"t{i:06d}", eegs[i % 64], images[i % 64], {"label": i % 2, "subject": "s"})

    for name in ("npy", "png"):
        write_shards(f"{folder}/{name}", {"train": samples()}, 256, card, {}, {}, "float16", name)
    half = np.lib.format.open_memmap(f"{folder}/half.npy", "w+", np.float16, (n_samples, CHANNELS, TIMES))
    eeg = np.lib.format.open_memmap(f"{folder}/eeg.npy", "w+", np.float32, (n_samples, CHANNELS, TIMES))
    hwc = np.lib.format.open_memmap(f"{folder}/hwc.npy", "w+", np.uint8, (n_samples, PIXELS, PIXELS, 3))
    image = np.lib.format.open_memmap(f"{folder}/image.npy", "w+", np.uint8, (n_samples, 3, PIXELS, PIXELS))
    for i in range(n_samples):
        half[i], eeg[i] = eegs[i % 64], eegs[i % 64]
        hwc[i], image[i] = images[i % 64], images[i % 64].transpose(2, 0, 1)


def local(index: str, workers: int) -> Iterator[tuple]:
    from eeg_gan.data.loader import Reader, shuffled_at
    from eeg_gan.data.shards import Shards

    reader, position = Reader(Shards(index, ("train",), verify="size"), "train", 0, workers), 0
    while True:
        batch = reader.batch(shuffled_at(0, reader.n, position, BATCH))
        position += BATCH
        yield batch["eeg"], batch["image"]


def streamed(index: str) -> Iterator[tuple]:
    from eeg_gan.data.shards import Shards
    from eeg_gan.data.stream import Stream, StreamConfig, listed

    shards, config = Shards(index, ("train",), verify="size"), StreamConfig()
    stream = Stream(listed(shards, "train", config), shards.form, BATCH, 0, config, workers=WORKERS)
    for batch in stream.batches():
        yield batch["eeg"], batch["image"]


def whole_batches(folder: str, names: tuple[str, str]) -> Iterator[tuple]:
    """Memory-mapped arrays of EEG and images, indexed by a whole batch."""
    import torch

    eeg, image = (np.load(f"{folder}/{file}.npy", mmap_mode="r") for file in names)
    random = np.random.default_rng(0)
    while True:
        order = random.permutation(len(eeg))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            wanted = order[start : start + BATCH]
            pixels = image[wanted]
            if pixels.shape[3] == 3:  # channel by channel is the fastest way there is in numpy and torch
                pixels = np.stack([pixels[..., channel] for channel in range(3)], axis=1)
            yield torch.from_numpy(eeg[wanted]).float(), torch.from_numpy(pixels)


class Mapped:
    """The data set that a DataLoader reads sample by sample."""

    def __init__(self, folder: str):

        self.eeg, self.image = (np.load(f"{folder}/{name}.npy", mmap_mode="r") for name in ("eeg", "image"))

    def __len__(self) -> int:
        return len(self.eeg)

    def __getitem__(self, i: int) -> tuple:
        import torch

        return torch.from_numpy(np.array(self.eeg[i])), torch.from_numpy(np.array(self.image[i]))


def single_samples(folder: str) -> Iterator[tuple]:
    """A memory-mapped array, read sample by sample by a DataLoader."""
    from torch.utils.data import DataLoader

    keys = {"shuffle": True, "num_workers": WORKERS, "drop_last": True, "persistent_workers": True}
    loader = DataLoader(Mapped(folder), BATCH, **keys)
    while True:
        yield from loader


def webdataset_pipeline(folder: str) -> Iterator[tuple]:
    """webdataset as its documentation has it, endless, so that its workers are started once."""
    import glob

    import webdataset as wds

    urls = sorted(glob.glob(f"{folder}/png/train/*.tar"))
    dataset = wds.WebDataset(urls, shardshuffle=100, seed=0).shuffle(1000).decode("torchrgb8")
    dataset = dataset.to_tuple("eeg.npy", "png").map_tuple(_floats, None).batched(BATCH, partial=False)
    yield from wds.WebLoader(dataset.repeat(), batch_size=None, num_workers=WORKERS)


def _floats(eeg):

    return eeg.astype(np.float32)


SIDES: dict[str, Callable[[str], Iterator[tuple]]] = {
    "local npy": lambda folder: local(f"{folder}/npy/index.json", 0),
    "memory map, same arrays": lambda folder: whole_batches(folder, ("half", "hwc")),
    "memory map, converted": lambda folder: whole_batches(folder, ("eeg", "image")),
    "memory map, DataLoader": single_samples,
    "local png": lambda folder: local(f"{folder}/png/index.json", WORKERS),
    "stream png": lambda folder: streamed(f"{folder}/png/index.json"),
    "webdataset png": webdataset_pipeline,
}


def cpu_seconds() -> float:
    """Of this process and its helpers."""
    import psutil

    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def measured(batches: Iterator[tuple], n_batches: int) -> np.ndarray:
    """Seconds by the clock and of CPU per sample."""
    settle()
    for _ in range(6):  # what helpers had waiting
        next(batches)
    start, cpu = time.perf_counter(), cpu_seconds()
    for _ in range(n_batches):
        next(batches)
    return np.array([time.perf_counter() - start, cpu_seconds() - cpu]) / (n_batches * BATCH)


def settle() -> None:
    """Waits until the helpers of the side before have filled their queues."""
    before, now = -1.0, cpu_seconds()
    while now - before > 0.01:
        time.sleep(0.15)
        before, now = now, cpu_seconds()


def warm(batches: Iterator[tuple], n_batches: int) -> Iterator[tuple]:
    """The side after so many batches: helpers run, pages are in the cache, and what it gives is checked."""
    for _ in range(n_batches):
        eeg, image = next(batches)
    assert tuple(eeg.shape) == (BATCH, CHANNELS, TIMES) and tuple(image.shape) == (BATCH, 3, PIXELS, PIXELS)
    assert str(eeg.dtype) == "torch.float32" and eeg.is_contiguous() and image.is_contiguous()
    return batches


def one_round(sides: dict[str, Iterator[tuple]], n_batches: int) -> dict[str, np.ndarray]:
    """All sides forth and back, so that what drifts while they run falls on all alike."""
    found = {name: np.zeros(2) for name in sides}
    for name in (*sides, *reversed(sides)):
        found[name] += measured(sides[name], n_batches if "png" in name else 3 * n_batches) / 2
    return found


def ratios(cost: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """How much faster than the other side in one round, by the clock and by CPU."""
    arrays = {
        name: found for name, found in cost.items() if name in ("memory map, same arrays", "memory map, DataLoader")
    }
    better = np.min(list(arrays.values()), axis=0)
    return {
        "local npy / better memory map (at least 0.8)": better / cost["local npy"],
        "local npy / memory map of converted arrays": cost["memory map, converted"] / cost["local npy"],
        "local png / webdataset (at least 2)": cost["webdataset png"] / cost["local png"],
        "stream png / webdataset (at least 1)": cost["webdataset png"] / cost["stream png"],
    }


def summary(values: list[np.ndarray]) -> dict[str, list[float]]:
    """Lowest, median and highest over the rounds, by the clock and by CPU."""
    table = np.array(values)
    return {
        name: [round(float(np.quantile(table[:, k], q)), 3) for q in (0, 0.5, 1)]
        for k, name in enumerate(("wall", "cpu"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument(
        "--batches", type=int, default=10, help="of each side with PNG, twice in each round; thrice of others"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where data are written, and deleted again")
    parser.add_argument("--json", help="file for the figures")
    options = parser.parse_args()
    folder = os.path.join(options.folder, f"bench-loader-{os.getpid()}")
    rounds: list[dict[str, np.ndarray]] = []
    try:
        write(folder, options.samples)
        epoch = options.samples // BATCH
        sides = {name: warm(side(folder), 8 if "png" in name else epoch) for name, side in SIDES.items()}
        for _ in range(options.rounds):
            rounds.append(one_round(sides, options.batches))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rates = {name: summary([1 / found[name] for found in rounds]) for name in SIDES}
    compared = {name: summary([ratios(found)[name] for found in rounds]) for name in ratios(rounds[0])}
    for name, found in rates.items():
        print(f"{name:28} {found['wall'][1]:8.0f} samples/s {found['cpu'][1]:8.0f} per CPU-s")
    for name, found in compared.items():
        wall, cpu = ("{1:5.2f} ({0:.2f} to {2:.2f})".format(*found[k]) for k in ("wall", "cpu"))
        print(f"{name:46} {wall} by the clock, {cpu} by CPU")
    if options.json:
        about = {
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "rounds": options.rounds,
            "samples": options.samples,
        }
        with open(options.json, "w") as file:
            json.dump({"about": about, "samples_per_s": rates, "ratios": compared}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
