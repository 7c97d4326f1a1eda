"""Section of the report on when, where and in which rhythm the EEG tells the class."""

from collections.abc import Sequence

import numpy as np

from eeg_gan.config import UserError
from eeg_gan.data.sources.physiology import sensor_positions
from eeg_gan.models.eeg.montage import plain, positions
from eeg_gan.stages import figures, scalp
from eeg_gan.stages.report_runs import Runs

LEAST = 4  # electrodes with a known place that make a map
BANDS = ("delta", "theta", "alpha", "beta", "gamma")


def decoding(runs: Runs) -> list[dict]:
    blocks = [*_over_time(runs), *_where(runs), *_bands(runs)]
    if not blocks:
        raise UserError(
            "evaluate/details.safetensors holds no curve over time and no importance of electrodes; the stage evaluate "
            "writes them with time_resolved=true and encoder=RUN_DIR"
        )
    return blocks


def _over_time(runs: Runs) -> list[dict]:
    if "time_accuracy" not in runs.details:
        return []
    times, curve = runs.detail("time_s", "time_accuracy")
    chance = 1 / len({m["label"] for m in runs.metas})
    return [
        {
            "kind": "figure",
            "title": "When",
            "src": scalp.curve_over_time(times, curve, chance),
            "alt": "decoding accuracy over the time of a trial",
            "caption": (
                "Balanced accuracy of a shrinkage LDA that sees the electrodes in one window of time alone, on "
                "held-out trials, with its 95 % interval. Before the stimulus (0 s) it has to be at chance, the red "
                "line; if it is not, something else than the answer to the picture tells the class."
            ),
        }
    ]


def _where(runs: Runs) -> list[dict]:
    if "channel_importance" not in runs.details:
        return []
    [lost], names = runs.detail("channel_importance"), runs.shards.card.ch_names
    places, known = places_of(names)
    if len(known) >= LEAST:
        src = scalp.topomap(places, lost[known], [names[k] for k in known])
        left = [names[k] for k in range(len(names)) if k not in set(known)]
        more = f" Without a known place: {', '.join(left[:6])}{' and others' * (len(left) > 6)}." if left else ""
    else:
        src, more = scalp.ranked(names, lost), " The electrodes' names have no place in the 10-10 system."
    return [
        {
            "kind": "figure",
            "title": "Where",
            "src": src,
            "alt": "importance of each electrode",
            "caption": (
                "By how many points the probability of the true class falls when one electrode is that of another "
                "trial of the same person: what the encoder rests on. Electrodes that say the same can stand in for "
                f"one another, so that each seems to matter little.{more}"
            ),
        }
    ]


def _bands(runs: Runs) -> list[dict]:
    known = [band for band in BANDS if f"bands/{band}_removed" in runs.metrics]
    if not known:
        return []
    panels = [
        {
            "title": title,
            "bars": [("all bands", runs.metrics["bands/all"], figures.FAINT)]
            + [(band, runs.metrics[f"bands/{band}_{name}"], None) for band in known],
        }
        for title, name in (("Without the band", "removed"), ("The band alone", "alone"))
    ]
    return [
        {
            "kind": "figure",
            "title": "In which rhythm",
            "src": figures.bars(panels),
            "alt": "accuracy without each frequency band and with it alone",
            "caption": (
                "Accuracy of the linear probe on the encoder's feature when a band is taken out of held-out trials, or "
                "nothing else is left in them; encoder and probe are those of the whole EEG. delta is below 4 Hz, "
                "theta 4 to 8, alpha 8 to 13, beta 13 to 30, gamma above."
            ),
        }
    ]


def places_of(names: Sequence[str]) -> tuple[np.ndarray, list[int]]:
    """[N, 2] (x to the right, y to the nose; radius 1 at the level of the ears) of the electrodes that have a place.

    By MNE's 10-5 montage where MNE is there, else by the 64 electrodes of the 10-10 system that are known here.
    """
    try:
        found = {name: flat(direction) for name, direction in positions(names).items()}
    except UserError:
        table = {plain(name): place for name, place in sensor_positions().items()}
        found = {name: np.array(table[plain(name)]) for name in names if plain(name) in table}
    known = [k for k, name in enumerate(names) if name in found]
    return np.array([found[names[k]] for k in known]).reshape(-1, 2), known


def flat(direction: np.ndarray) -> np.ndarray:
    """A unit vector from the middle of the head, by its angle from the top: the map keeps those angles."""
    x, y, z = direction
    across = np.hypot(x, y)
    return np.array([x, y]) / max(across, 1e-9) * np.arctan2(across, z) / (np.pi / 2)
