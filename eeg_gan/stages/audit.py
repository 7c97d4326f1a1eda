"""Looks for leaks and confounds in prepared shards, and runs the control experiments; audit.json and audit.html."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eeg_gan.data import audit, baseline, controls, likeness, summary, units
from eeg_gan.data.baseline import Quiet
from eeg_gan.data.controls import Control, Trials
from eeg_gan.data.loader import LoaderConfig, Reader
from eeg_gan.data.ridge import Decoder
from eeg_gan.data.shards import Shards
from eeg_gan.data.splits import SPLITS
from eeg_gan.metrics.statistics import bootstrap_mean
from eeg_gan.stages import audit_page
from eeg_gan.stages.loading import open_shards
from eeg_gan.training import checkpoint, runtime

log = logging.getLogger("eeg_gan")
LEAST = 3000  # permutations: with fewer, no p is below .001 / 3
BATCH = 64
FEW_GROUPS = 10  # of a bootstrap


@dataclass(frozen=True)
class Config:
    run_dir: str  # where audit.json and audit.html go
    loader: LoaderConfig  # the shards to audit, test split included
    permutations: int = 10_000  # shufflings behind each p-value
    seed: int = 0  # of the shufflings

    def __post_init__(self):
        if self.permutations < LEAST:
            raise ValueError(
                f"permutations must be {LEAST} or more, or p < .001 over three controls cannot be reached; "
                f"got {self.permutations}"
            )


def run(config: Config) -> None:
    with runtime.start("audit", config) as rt:
        if rt.done:
            return
        names = tuple(split for split in SPLITS if split in open_shards(config.loader, ()).index["splits"])
        shards = open_shards(config.loader, names)
        rt.inputs([config.loader.index], shards=shards.digest)
        rt.start_log()
        rt.confounded(shards.confounded)
        rt.reads(names)
        metas = {split: shards.metas(split) for split in names}
        plan = Plan(metas, shards)
        seen = look(plan, shards, config, rt)
        found = leaks(plan, seen, shards)
        done = experiments(plan, seen, shards, config, rt)
        outcome = audit.judge(found, done, shards.card, shards.split_policy)
        found["controls"] = {name: described(control, plan, shards.card.pairing) for name, control in done.items()}
        for name in controls.DECIDING:
            found["controls"][name]["effect"] = audit.weigh(done[name], done["ridge"])
        found["time_control"], found["shuffled_labels"] = found["controls"]["time"], found["controls"]["shuffled_eeg"]
        found |= {"verdict": outcome.verdict, "reasons": outcome.reasons, "notes": outcome.notes + plan.notes}
        found["counts"] = {split: len(own) for split, own in metas.items()}
        found["split_policy"], found["design"] = shards.split_policy, shards.card.design
        if rt.main:
            checkpoint.write_json(rt.run_dir / "audit.json", found)
            audit_page.write(rt.run_dir / "audit.html", found, shards.card, metas, seen)
            for reason in found["reasons"]:
                log.warning("audit: %s", reason)
        known = {name: control.value for name, control in done.items() if control.value is not None}
        rt.log.scalars(0, {f"control/{name} (balanced accuracy)": value for name, value in known.items()})
        rt.finish(found["verdict"] + _about_time(done["time"]))


def _about_time(control: Control) -> str:
    if control.value is None:
        return ""
    return f"; time alone decodes {control.value:.3f}, chance {control.chance:.3f}"


class Plan:
    """Which trials decoders are fitted on and scored on, and the blocks of all."""

    def __init__(self, metas: dict[str, list], shards: Shards):
        fit, score, note = controls.parts(metas)
        self.metas, self.notes = metas, [note] if note else []
        thin = {
            "fit": controls.thinned(fit, controls.MOST["fit"]),
            "score": controls.thinned(score, controls.MOST["score"]),
        }
        if len(thin["fit"]) < len(fit) or len(thin["score"]) < len(score):
            self.notes.append(
                f"controls use {len(thin['fit'])} of {len(fit)} and {len(thin['score'])} of {len(score)}"
                " trials, evenly spread"
            )
        self.rows = {row: n for n, row in enumerate([*thin["fit"], *thin["score"]])}
        self.fit, self.score = ([metas[split][i] for split, i in thin[part]] for part in ("fit", "score"))
        self.n_fit = len(self.fit)
        blocks = units.blocks_of([meta for own in metas.values() for meta in own])
        starts = np.cumsum([0] + [len(own) for own in metas.values()])
        self.blocks = {s: None if blocks is None else blocks[a:] for s, a in zip(metas, starts[:-1], strict=True)}
        self.quiet = baseline.quiet(shards.preprocessing, shards.card, shards.n_times)


@dataclass
class Seen:
    """What one pass over the data leaves."""

    digests: dict[str, list[str]]
    pictures: dict[str, dict[str, tuple]]
    features: dict[str, np.ndarray]  # of the planned trials: whole, before, slow
    by_class: summary.Means  # power density [C, F]
    by_block: summary.Means
    evoked: summary.Means  # EEG [C, T] by class
    freqs: np.ndarray
    times: np.ndarray


def look(plan: Plan, shards: Shards, config: Config, rt: runtime.Runtime) -> Seen:
    sfreq = shards.preprocessing["sfreq"]
    times = shards.preprocessing["tmin_s"] + np.arange(shards.n_times) / sfreq
    seen = Seen(
        {}, {}, {}, summary.Means(), summary.Means(), summary.Means(), np.fft.rfftfreq(len(times), 1 / sfreq), times
    )
    with rt.bar(sum(len(own) for own in plan.metas.values())) as bar:
        done = 0
        for split, metas in plan.metas.items():
            seen.digests[split], seen.pictures[split] = [], {}
            before = done
            for batch in Reader(shards, split, 0, config.loader.workers).in_order(BATCH):
                rows = range(done - before, done - before + len(batch["label"]))
                _add(seen, plan, split, metas, rows, batch, sfreq)
                bar.update(done := done + len(rows))
                rt.check_stop()
    return seen


def _add(seen: Seen, plan: Plan, split: str, metas: list, rows: range, batch: dict, sfreq: float) -> None:
    eeg, labels = batch["eeg"].numpy(), batch["label"].numpy()
    seen.digests[split] += [audit.eeg_digest(x) for x in eeg]
    freqs, density = summary.spectrum(eeg, sfreq)
    seen.by_class.add(labels, density)
    seen.evoked.add(labels, eeg)
    if plan.blocks[split] is not None:
        seen.by_block.add(plan.blocks[split][rows.start : rows.stop], density)
    for n, i in enumerate(rows if "image" in batch else ()):
        if metas[i]["image_sha256"] not in seen.pictures[split]:
            picture = batch["image"][n].permute(1, 2, 0).numpy()
            seen.pictures[split][metas[i]["image_sha256"]] = likeness.fingerprint(picture)
    planned = [n for n, i in enumerate(rows) if (split, i) in plan.rows]
    if planned:
        chosen = [plan.rows[split, rows[n]] for n in planned]
        _keep(seen.features, "whole", len(plan.rows), chosen, summary.whole(eeg[planned], freqs, density[planned]))
        _keep(seen.features, "slow", len(plan.rows), chosen, summary.slow(eeg[planned], sfreq))
        if plan.quiet.directions is not None:
            _keep(seen.features, "before", len(plan.rows), chosen, summary.before(eeg[planned], plan.quiet))


def _keep(features: dict, name: str, n: int, rows: list[int], values: np.ndarray) -> None:
    features.setdefault(name, np.zeros((n, values.shape[1]), dtype=np.float32))[rows] = values


def leaks(plan: Plan, seen: Seen, shards: Shards) -> dict:
    """What splits share."""
    metas = plan.metas
    found = audit.leaks(metas, shards.n_times / shards.preprocessing["sfreq"])
    found["duplicate_eeg"] = audit.duplicates(seen.digests)
    near = likeness.near_duplicates(seen.pictures) if shards.has_images else {}
    found["near_duplicate_images"] = {pair: len(own) for pair, own in near.items()}
    names = {meta["image_sha256"]: meta["stimulus"] or meta["key"] for own in metas.values() for meta in own}
    found["near_duplicate_examples"] = [[names[a], names[b]] for own in near.values() for a, b in own[:5]]
    found["fitted_on"] = audit.fitted_on(shards.preprocessing, {split: len(own) for split, own in metas.items()})
    return found


def experiments(plan: Plan, seen: Seen, shards: Shards, config: Config, rt: runtime.Runtime) -> dict[str, Control]:
    """Every control by name; those that cannot be made say why."""
    whole = [meta for own in plan.metas.values() for meta in own]
    trials = Trials(plan.fit, plan.score, shards.card, config.permutations, config.seed, whole)
    done = {"time": controls.time_alone(trials)}
    if trials.missing:
        rest = ("pre_stimulus", "between_blocks", "ridge", "below_2hz", "shuffled_eeg")
        return done | dict.fromkeys(rest, Control(note=trials.missing))
    rt.check_stop()
    done["pre_stimulus"] = _pre_stimulus(trials, plan.quiet, seen)
    rt.check_stop()
    decoder = _decoder(trials, seen.features["whole"])
    done["between_blocks"] = controls.between_blocks(trials, decoder)
    done["ridge"] = controls.answered(trials, decoder.predict(trials.y_fit), "ridge")
    done["shuffled_eeg"] = controls.shuffled_eeg(trials, decoder)
    rt.check_stop()
    done["below_2hz"] = _below_2hz(trials, shards, seen)
    return done


def _pre_stimulus(trials: Trials, quiet: Quiet, seen: Seen) -> Control:
    if quiet.directions is None:
        return Control(note=quiet.reason)
    predicted = _decoder(trials, seen.features["before"]).predict(trials.y_fit)
    return controls.with_note(controls.judged(trials, predicted, "pre_stimulus"), quiet.reason)


def _below_2hz(trials: Trials, shards: Shards, seen: Seen) -> Control:
    edge = shards.preprocessing["config"].get("highpass_hz")
    if edge and edge >= summary.SLOW_HZ:
        return Control(note=f"prepare removed everything below {edge:g} Hz")
    predicted = _decoder(trials, seen.features["slow"]).predict(trials.y_fit)
    return controls.answered(trials, predicted, "below_2hz")


def _decoder(trials: Trials, features: np.ndarray) -> Decoder:
    n = len(trials.fit)
    places = units.numbered([units.place(meta) for meta in [*trials.fit, *trials.score]])
    return Decoder(features[:n], features[n:], trials.y_fit, places[:n], places[n:])


def described(control: Control, plan: Plan, pairing: str) -> dict:
    """The entry of audit.json, with an interval bootstrapped over stimuli, or over recordings where nobody saw any.

    Few groups say little of how groups differ, so then the interval is the wider one of theirs and that of trials.
    """
    low = high = None
    if control.correct is not None:
        fields = ("recording", "subject", "key") if pairing == "class" else ("stimulus", "recording", "key")
        groups: Sequence = [next(m[field] for field in fields if m[field] is not None) for m in plan.score]
        intervals = [bootstrap_mean(control.correct, groups)[1:]]
        if len(set(groups)) < FEW_GROUPS:
            intervals.append(bootstrap_mean(control.correct, [m["key"] for m in plan.score])[1:])
        low, high = min(low for low, _ in intervals), max(high for _, high in intervals)
    entry = {"value": control.value, "low": low, "high": high, "chance": control.chance, "p": control.p}
    return entry | {"n": control.n, "note": control.note, "least_p": control.least}
