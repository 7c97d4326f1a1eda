"""Are the audit's p-values right? `python tests/bench/audit_null.py SEEDS [DESIGN ...] [--apart] [--permutations N]`
audits as many data sets of pure noise per design, and prints how often each deciding control has p <= .05 and <= .001.

EEG drifts slowly, anew in every recording; half of its features answer to the class after the stimulus, for the control
that moves labels between blocks. Nothing tells the class before the stimulus, so every alarm is a false one; each rate
stands with the range in which 99 of 100 lie where the rate is right. `power` designs hold blocks of one class, and an
alarm there is a true one. --apart lets every recording be permuted on its own, as if orders were never shared.
"""

import argparse
import time

import numpy as np
from scipy.stats import binom

from eeg_gan.data import controls, units
from eeg_gan.data.card import Card
from eeg_gan.data.controls import Trials
from eeg_gan.data.ridge import Decoder
from eeg_gan.data.trial import complete

CLASSES, STIMULI, FEATURES, BLOCKS = 4, 20, 6, 4
LEVELS = (0.05, 0.001)
DESIGNS = {  # recordings, distinct orders (None: each its own), share of trials that are dropped
    "own": {"recordings": 8},
    "playlist": {"recordings": 8, "playlists": 1},
    "two playlists": {"recordings": 8, "playlists": 2},
    "playlist, 5 % dropped": {"recordings": 8, "playlists": 1, "dropped": 0.05},
    "playlist of 2 runs, swapped": {"recordings": 8, "playlists": 1, "swapped": True},
    "one recording": {"recordings": 1},
    "two recordings": {"recordings": 2},
    "two recordings, playlist": {"recordings": 2, "playlists": 1},
    "power: blocks": {"recordings": 8, "blocked": 10},
    "power: blocks, playlist": {"recordings": 8, "blocked": 10, "playlists": 1},
    "power: blocks, one recording": {"recordings": 1, "blocked": 10},
}


def presented(seed, recordings, playlists=None, dropped=0.0, swapped=False, blocked=0) -> tuple[list[dict], str]:
    """Metas of recordings in which every stimulus is shown once, 2 s apart, and the card's design."""
    random, metas, classes = np.random.default_rng(seed), [], blocked or CLASSES
    orders = []
    for _ in range(recordings if playlists is None else playlists):
        order = random.permutation(classes * STIMULI)
        rank = random.permutation(classes)
        orders.append(order[np.argsort(rank[order // STIMULI], kind="stable")] if blocked else order)
    for r in range(recordings):
        order = orders[r % len(orders)]
        half = len(order) // 2
        order = np.concatenate([order[half:], order[:half]]) if swapped and r % 2 else order
        for n, i in enumerate(order.tolist()):
            if random.random() < dropped:
                continue
            known = {"subject": f"s{r}", "recording": f"r{r}", "onset_s": 2.0 * n, "tmin_s": -0.2}
            known |= {"run": str(n // half)} if swapped else {}
            known |= {"block": str(n // STIMULI), "key": f"{r}-{i}", "label": i // STIMULI, "stimulus": f"i{i}"}
            metas.append(complete(known))
    return metas, "block" if blocked else "event-randomised"


def decoder(trials: Trials, seed: int, size: float) -> Decoder:
    """On drift and noise, with an answer of this size to the class."""
    random, both = np.random.default_rng([seed, 1]), [*trials.fit, *trials.score]
    places = units.numbered([meta["recording"] for meta in both])
    onsets, labels = np.array([m["onset_s"] for m in both]), np.array([m["label"] for m in both])
    waves = random.uniform(0, 6, (places.max() + 1, FEATURES))
    x = 3 * np.sin(onsets[:, None] / np.linspace(20, 60, FEATURES) + waves[places])
    x += random.normal(size=x.shape) + size * np.eye(max(FEATURES, labels.max() + 1))[labels][:, :FEATURES]
    n = len(trials.fit)
    return Decoder(x[:n], x[n:], trials.y_fit, places[:n], places[n:])


def p_values(design: str, seed: int, permutations: int) -> dict[str, float]:
    """One data set, a quarter of whose stimuli is held out."""
    metas, told = presented(seed, **DESIGNS[design])
    held = [int(m["stimulus"][1:]) % 4 == 0 for m in metas]
    fit, score = ([m for m, h in zip(metas, held, strict=True) if h == want] for want in (False, True))
    card = Card("noise", 100.0, ("Oz",), told, tuple(map(str, range(10))), "CC0")
    trials = Trials(fit, score, card, permutations, seed, metas)
    drifting = decoder(trials, seed, 0.0)
    return {
        "time": controls.time_alone(trials).p,
        "pre_stimulus": controls.judged(trials, drifting.predict(trials.y_fit), "pre_stimulus").p,
        "between_blocks": controls.between_blocks(trials, decoder(trials, seed, 2.0)).p,
    }


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("seeds", type=int)
    words.add_argument("designs", nargs="*", default=list(DESIGNS))
    words.add_argument("--apart", action="store_true")
    words.add_argument("--permutations", type=int, default=1999)
    given = words.parse_args()
    if given.apart:
        controls.orders.merged = lambda metas, own: own
    for design in given.designs:
        began = time.monotonic()
        found = [p_values(design, seed, given.permutations) for seed in range(given.seeds)]
        for name in found[0]:
            p = np.array([each[name] for each in found])
            rates = []
            for level in LEVELS:
                low, high = binom.interval(0.99, len(p), level)
                rates.append(f"p<={level:g}: {(p <= level).mean():.4f} [{low / len(p):.4f}, {high / len(p):.4f}]")
            print(f"{design:<30}{name:<16}{'  '.join(rates)}  ({len(p)} seeds)", flush=True)
        print(f"{design:<30}{time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
