"""What no decoder of the simulated EEG can beat: the accuracy of an observer who knows the simulator.

    python tests/bench/ideal_observer.py [--seeds 0 1 2] [--trials 600] [--json FILE] [--set images_per_class=500 ...]

The observer knows each person's mixing, latencies and noise covariance, how pictures of every class are drawn, and how
latencies and strengths vary from trial to trial; it does not know the trial. It takes the class with the highest
likelihood, averaged over drawn pictures of the class and drawn time courses. Blinks, mains and drift are left out,
which only helps it. Trained decoders know none of this and have some hundred trials of each class.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.special import logsumexp

from eeg_gan.data.sources import rendering, simulated
from eeg_gan.data.sources.physiology import COMPONENTS
from eeg_gan.metrics.statistics import wilson

PICTURES, COURSES = 250, 128  # drawn for each class; for each person


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--trials", type=int, default=600, help="to judge, spread over the recordings")
    parser.add_argument("--set", nargs="*", default=[], help="keys of source.simulated, such as images_per_class=500")
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    keys = {key: int(value) for key, value in (word.split("=") for word in words.set)}
    rows = []
    for seed in words.seeds:
        source = simulated.Simulated(simulated.SimulatedConfig(seed=seed, **keys))
        share, low, high = wilson(*judged(source, words.trials))
        rows.append({"seed": seed, **keys, "accuracy": share, "low": low, "high": high, "trials": words.trials})
        print(f"seed {seed}: {share:.3f} [{low:.3f}, {high:.3f}]", flush=True)
    if words.json:
        words.json.write_text(json.dumps(rows, indent=1) + "\n")


def judged(source: simulated.Simulated, n: int) -> tuple[int, int]:
    """How many of n spread trials the observer names rightly, and n."""
    chosen = np.linspace(0, len(source.plan) - 1, n).astype(int)
    drive, labels = pictures(source)
    right = 0
    for subject in range(source.config.subjects):
        own = [i for i in chosen if source.plan[i].subject == subject]
        x = np.stack([(source.common(i) + source.evoked(i) + source.noise(i)).ravel() for i in own])
        likely = log_likelihood(source, subject, x, drive)  # [N, pictures]
        classes = np.stack([logsumexp(likely[:, labels == k], axis=1) for k in range(source.config.n_classes)], axis=1)
        truth = [source.plan[i].image // source.config.images_per_class for i in own]
        right += int((classes.argmax(axis=1) == truth).sum())
    return right, n


def pictures(source: simulated.Simulated) -> tuple[np.ndarray, np.ndarray]:
    """What drives the EEG [P, F], of new pictures of each class, and their classes [P]."""

    def values(looks: list) -> np.ndarray:
        return np.array([list(rendering.features(look).values()) for look in looks])

    known = values([source._look(image) for image in range(source._n_images)])
    rng = np.random.default_rng(0)
    new = values([rendering.exemplar(look, rng) for look in source.classes for _ in range(PICTURES)])
    new = np.tanh(0.7 * (new - known.mean(axis=0)) / (known.std(axis=0) + 1e-9)) / 0.7
    return new, np.repeat(np.arange(len(source.classes)), PICTURES)


def log_likelihood(source: simulated.Simulated, subject: int, x: np.ndarray, drive: np.ndarray) -> np.ndarray:
    """[N, P] of trials x [N, C T] for each picture, averaged over time courses of the components."""
    person, (n_chans, n_times) = source._people[subject], (len(source.ch_names), len(source.times))
    factor = cho_factor(noise_covariance(source, person), lower=True, overwrite_a=True)
    parts = []
    for course in time_courses(source, person):
        loads = source._gain * np.einsum("ckf,kt->ctf", person.loads, course).reshape(n_chans * n_times, -1)
        common = simulated.COMMON_UV * (person.common @ course).ravel()
        to = cho_solve(factor, np.column_stack([loads, common]))
        rest = (x - common) @ to  # [N, F + 1]
        score = rest[:, :-1] @ drive.T - 0.5 * np.einsum("pf,fg,pg->p", drive, loads.T @ to[:, :-1], drive)
        parts.append(score + (x @ to[:, -1] - 0.5 * common @ to[:, -1])[:, None])
    return logsumexp(np.stack(parts), axis=0)


def time_courses(source: simulated.Simulated, person) -> np.ndarray:
    """[COURSES, K, T] as the simulator draws them for a trial of this person."""
    rng = np.random.default_rng(1)
    peak, width, cycles = (np.array([c[n] for c in COMPONENTS.values()])[:, None] for n in range(3))
    drawn = []
    for _ in range(COURSES):
        jitter = 0.010 * rng.standard_normal() + 0.004 * rng.standard_normal((len(peak), 1))
        strength = np.exp(0.15 * rng.standard_normal() + 0.1 * rng.standard_normal((len(peak), 1)))
        since = source.times - peak - (jitter + person.latency) * (0.7 + peak)
        shape = strength * np.exp(-0.5 * (since / width) ** 2) * np.cos(2 * np.pi * cycles * since)
        drawn.append(np.where(source.times > 0.02, shape, 0))
    return np.stack(drawn)


def noise_covariance(source: simulated.Simulated, person) -> np.ndarray:
    """[C T, C T] of 1/f noise and alpha."""
    n_times, sfreq = len(source.times), source.config.sfreq
    freqs = np.fft.rfftfreq(2 * n_times, 1 / sfreq)
    power = 1 / np.maximum(freqs, 0.5) ** 1.3 + 0.002
    power[0] = 0
    lag = np.fft.irfft(power)[:n_times]
    over_time = (lag / lag[0])[np.abs(np.subtract.outer(np.arange(n_times), np.arange(n_times)))]
    total = simulated.PINK_UV**2 * np.kron(person.background @ person.background.T, over_time)
    turns = 2 * np.pi * np.outer(person.alpha.freqs, source.times)
    for shift in (0, np.pi / 2):  # the recording's phase at the trial is unknown
        waves = np.sin(person.alpha.phases[:, :, None] + turns + shift)  # [sources, W, T]
        basis = np.einsum("cs,swt->wct", person.alpha.mixing, waves).reshape(len(turns), -1)
        scale = simulated.ALPHA_UV**2 * 1.25 / len(turns)  # 1.25: arousal; 2 / W of the sum, 1 / 2 of a sine's power
        total += scale * basis.T @ basis
    return total


if __name__ == "__main__":
    main()
