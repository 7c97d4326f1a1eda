"""Physiologically shaped EEG of people who look at rendered images: the data set that needs no download.

Every image is described by features (place, size, colours, contrast, outline, texture). Each feature scales its own
mixture of event-related components, so the response carries the picture and not a class code. A subject has an own
mixing matrix, latencies and alpha rhythm. Noise: 1/f, blinks, and alpha, mains and slow drift that run on through the
recording.

snr_db is 10 log10 of the mean power of the image-driven part of the response over that of the 1/f and alpha noise,
both averaged over trials, electrodes and the time from stimulus to end of trial; the response common to all images,
mains, blinks and drift do not count. With its default a shrinkage LDA tells the ten classes of unseen images in .40 to
.65 of the trials.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from eeg_gan.data.card import Card
from eeg_gan.data.sources import rendering
from eeg_gan.data.sources.physiology import COMPONENTS, LINE_HZ, PREFERRED, Person, sensor_positions
from eeg_gan.data.sources.rendering import stream

# C electrode, T time sample, K component, F feature
COMMON_UV, PINK_UV, ALPHA_UV, LINE_UV, BLINK_UV, DRIFT_UV = 4.0, 7.0, 4.0, 3.0, 90.0, 25.0
RUN_TRIALS = 100
SNR_TRIALS = 256  # over which the signal is scaled to snr_db


@dataclass(frozen=True)
class SimulatedConfig:
    seed: int = 0  # from which everything is drawn
    n_classes: int = 10  # classes of images, at most 20
    images_per_class: int = 60  # different images of each class
    subjects: int = 5  # persons; each sees every image
    repeats: int = 1  # how often a subject sees each image
    image_size: Literal[16, 32, 64] = 32  # height and width of the images in pixels
    n_chans: int = 32  # electrodes of the 10-10 system, 8 to 64
    sfreq: float = 128.0  # sampling rate in Hz
    tmin_s: float = -0.2  # start of a trial relative to the stimulus, at most -0.1
    tmax_s: float = 0.8  # end of a trial relative to the stimulus (exclusive)
    snr_db: float = -7.5  # power of the image-driven response over that of 1/f and alpha noise, after the stimulus
    design: Literal["event-randomised", "block"] = "event-randomised"  # block: class = block in time, a confound
    class_means: bool = True  # false removes class means from what drives the EEG: a control without class information

    def __post_init__(self):
        bounds = {"n_classes": (2, rendering.MAX_CLASSES), "n_chans": (8, len(PREFERRED)), "seed": (0, 2**31 - 1)}
        bounds |= dict.fromkeys(("images_per_class", "subjects", "repeats"), (1, 100_000))
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; choose between {low} and {high}")
        if self.image_size not in (16, 32, 64):
            raise ValueError(f"image_size is {self.image_size}; images are rendered at 16, 32 or 64 pixels")
        if self.design not in ("event-randomised", "block"):
            raise ValueError(f"design is {self.design!r}; choose event-randomised or block")
        if not self.tmin_s <= -0.1:
            raise ValueError(f"tmin_s is {self.tmin_s}; the simulator keeps at least 100 ms before the stimulus")
        if not 0.3 <= self.tmax_s <= 3:
            raise ValueError(f"tmax_s is {self.tmax_s}; the response takes 0.3 s to show; choose between 0.3 and 3")
        if not 64 <= self.sfreq <= 2048:
            raise ValueError(f"sfreq is {self.sfreq}; choose between 64 and 2048 Hz")
        if not -60 <= self.snr_db <= 60:
            raise ValueError(f"snr_db is {self.snr_db}; choose between -60 and 60 dB")


class Simulated:
    """The source: `trials[i]` is computed when asked for, the same in any order and in any process."""

    def __init__(self, config: SimulatedConfig):
        self.config = config
        self.classes = rendering.class_looks(config.seed, config.n_classes)
        self.ch_names = tuple(name for name in sensor_positions() if name in PREFERRED[: config.n_chans])
        self.times = config.tmin_s + np.arange(round((config.tmax_s - config.tmin_s) * config.sfreq)) / config.sfreq
        self.positions = np.array([sensor_positions()[name] for name in self.ch_names])  # [C, 2]
        self.plan = _plan(config)
        self._pictures: dict[int, np.ndarray] = {}
        self.trials = [self._meta(i) for i in range(len(self.plan))]
        self.card = Card(
            name="simulated",
            sfreq=config.sfreq,
            ch_names=self.ch_names,
            design=config.design,
            class_names=tuple(look.name for look in self.classes),
            licence="CC0-1.0",
            source="computed by eeg_gan.data.sources.simulated",
            pairing="trial",
            line_hz=LINE_HZ if config.sfreq > 2 * LINE_HZ else None,
            tmin_s=config.tmin_s,
            description=f"Simulated EEG of {config.subjects} people looking at rendered images, {config.snr_db:g} dB.",
        )

    def eeg(self, i: int) -> np.ndarray:
        """[C, T] float32 in microvolt."""
        return (self.common(i) + self.evoked(i) + self.noise(i) + self.artefacts(i)).astype(np.float32)

    def image(self, i: int) -> np.ndarray:
        """[H, W, 3] uint8: the picture of trial `i`."""
        number = self.plan[i].image
        if number not in self._pictures:  # every subject sees it
            self._pictures[number] = rendering.render(self._look(number), self.config.image_size)
        return self._pictures[number]

    def image_key(self, i: int) -> int:
        """Equal for trials that show the same picture."""
        return self.plan[i].image

    def evoked(self, i: int) -> np.ndarray:
        """[C, T] in microvolt: the part of the response that the image drives; the signal of `snr_db`."""
        return self._gain * self._evoked(i)

    def noise(self, i: int) -> np.ndarray:
        """[C, T] in microvolt: 1/f and alpha; the noise of `snr_db`."""
        plan, person = self.plan[i], self._people[self.plan[i].subject]
        rng = stream(self.config.seed, "noise", i)
        n_times = len(self.times)
        freqs = np.fft.rfftfreq(2 * n_times, 1 / self.config.sfreq)
        amplitude = np.sqrt(1 / np.maximum(freqs, 0.5) ** 1.3 + 0.002)
        amplitude[0] = 0
        amplitude *= n_times / np.sqrt((amplitude**2).sum())  # unit variance
        white = rng.standard_normal((len(self.ch_names), len(freqs), 2), dtype=np.float32).view(np.complex64)[..., 0]
        doubled = np.fft.irfft(white * amplitude.astype(np.float32), axis=1)
        pink = doubled[:, :n_times]  # of a stretch twice as long, so that its ends do not meet
        alpha = person.alpha.at(plan.onset_s + self.times) * (1 + 0.5 * person.arousal.at(np.array([plan.onset_s])))
        return PINK_UV * person.background @ pink + ALPHA_UV * alpha

    def common(self, i: int) -> np.ndarray:
        """[C, T] in microvolt: the response that every image evokes alike."""
        person = self._people[self.plan[i].subject]
        return COMMON_UV * person.common @ self._courses(i)

    def artefacts(self, i: int) -> np.ndarray:
        """[C, T] in microvolt: mains, slow drift and blinks."""
        person, time = self._people[self.plan[i].subject], self.plan[i].onset_s + self.times
        wave = DRIFT_UV * person.drift.at(time)
        if self.card.line_hz:
            wave += LINE_UV * person.line.at(time)
        rng = stream(self.config.seed, "blink", i)
        if rng.uniform() < 0.08:
            since = (self.times - rng.uniform(self.times[0], self.times[-1])) / 0.3
            shape = np.where(np.abs(since) < 0.5, np.cos(np.pi * since) ** 2, 0)
            wave += BLINK_UV * rng.uniform(0.7, 1.3) * np.outer(person.blink, shape)
        return wave

    @cached_property
    def drive(self) -> np.ndarray:
        """[images, F]: standardised features after a mild saturation; what scales the components."""
        rows = [list(rendering.features(self._look(image)).values()) for image in range(self._n_images)]
        values = np.array(rows)
        values = np.tanh(0.7 * (values - values.mean(axis=0)) / (values.std(axis=0) + 1e-9)) / 0.7
        if not self.config.class_means:
            groups = values.reshape(self.config.n_classes, self.config.images_per_class, -1)
            values = (groups - groups.mean(axis=1, keepdims=True)).reshape(values.shape)
        return values

    @property
    def _n_images(self) -> int:
        return self.config.n_classes * self.config.images_per_class

    @cached_property
    def _people(self) -> list[Person]:
        names = tuple(rendering.features(self._look(0)))
        return [Person(self.config.seed, s, self.positions, names) for s in range(self.config.subjects)]

    @cached_property
    def _gain(self) -> float:
        """Scales the evoked part so that its mean power over SNR_TRIALS spread trials is `snr_db` above the noise's."""
        chosen = np.unique(np.linspace(0, len(self.plan) - 1, SNR_TRIALS).astype(int))
        after = self.times >= 0
        power = np.array([[(x[:, after] ** 2).mean() for x in (self._evoked(i), self.noise(i))] for i in chosen])
        signal, noise = power.mean(axis=0)
        return math.sqrt(noise / max(signal, 1e-12) * 10 ** (self.config.snr_db / 10))

    def _evoked(self, i: int) -> np.ndarray:
        plan = self.plan[i]
        return (self._people[plan.subject].loads @ self.drive[plan.image]) @ self._courses(i)

    def _courses(self, i: int) -> np.ndarray:
        """[K, T] time courses of the components: Gabor shapes shifted by the subject's and the trial's latencies."""
        person, rng = self._people[self.plan[i].subject], stream(self.config.seed, "trial", i)
        peak, width, cycles = (np.array([c[n] for c in COMPONENTS.values()])[:, None] for n in range(3))
        jitter = 0.010 * rng.standard_normal() + 0.004 * rng.standard_normal((len(peak), 1))
        strength = np.exp(0.15 * rng.standard_normal() + 0.1 * rng.standard_normal((len(peak), 1)))
        since = self.times - peak - (jitter + person.latency) * (0.7 + peak)  # later components vary more
        shape = strength * np.exp(-0.5 * (since / width) ** 2) * np.cos(2 * np.pi * cycles * since)
        return np.where(self.times > 0.02, shape, 0)

    def _look(self, image: int) -> rendering.Look:
        label = image // self.config.images_per_class
        return rendering.exemplar(self.classes[label], stream(self.config.seed, "image", image))

    def _meta(self, i: int) -> dict[str, Any]:
        plan = self.plan[i]
        label, number = divmod(plan.image, self.config.images_per_class)
        subject, name = f"S{plan.subject + 1}", self.classes[label].name
        return {
            "key": f"{subject}_{i:06d}",
            "label": label,
            "class_name": name,
            "subject": subject,
            "session": "1",
            "run": str(plan.run + 1),
            "block": str(plan.run + 1),
            "recording": f"{subject}_session-1",
            "onset_s": round(plan.onset_s, 6),
            "tmin_s": self.config.tmin_s,
            "sfreq": self.config.sfreq,
            "stimulus": f"{name}_{number:04d}",
            "concept": name,
        }


class Plan(NamedTuple):
    subject: int
    run: int
    image: int
    onset_s: float


def _plan(config: SimulatedConfig) -> list[Plan]:
    """Who sees which image when; in the block design all subjects see the classes one after the other."""
    plans = []
    n_images = config.n_classes * config.images_per_class
    for subject in range(config.subjects):
        rng = stream(config.seed, "plan", subject)
        order = np.concatenate([rng.permutation(n_images) for _ in range(config.repeats)])
        labels = order // config.images_per_class
        if config.design == "block":
            order = order[np.argsort(labels, kind="stable")]
            runs = np.sort(labels)
        else:
            runs = np.arange(len(order)) // RUN_TRIALS
        gaps = config.tmax_s - config.tmin_s + rng.uniform(0.1, 0.5, len(order))
        gaps += 10 * np.diff(runs, prepend=-1)  # a rest between runs
        onsets = np.cumsum(gaps)
        plans += [Plan(subject, *row) for row in zip(runs.tolist(), order.tolist(), onsets.tolist(), strict=True)]
    return plans
