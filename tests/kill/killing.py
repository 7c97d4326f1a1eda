"""Kills runs at random moments, continues each one, and compares what they end with: an unbroken run's state.

    python tests/kill/killing.py [KILLS] [SEED]

Half of the moments are instants, drawn evenly over the time that the unbroken run takes; half are operations on files
(write, fsync, rename, delete), nearly all of them within saves, before or after which the process kills itself with
SIGKILL. Some runs are killed again while they go on. After every kill the newest checkpoint must be whole and hold at
least what the last finished save held; at the end weights, optimisers, state, log rows and TensorBoard's steps must be
those of the unbroken run. Children are forked from a process that has imported everything. Exits with 1 where a run
differs.
"""

import json
import logging
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from warm import Warm  # noqa: E402

from eeg_gan.training import checkpoint, events  # noqa: E402
from eeg_gan.training.log import read_stats  # noqa: E402

# In the child: counts operations on files and notes finished saves; at one of them it kills itself.
HOOK = """
import os, shutil, signal
from eeg_gan.training import checkpoint
count, at, where, path = [0], {at}, {where!r}, {noted!r}

def counted(own):
    def run(*arguments, **keywords):
        count[0] += 1
        if count[0] == at and where == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = own(*arguments, **keywords)
        if count[0] == at and where == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return run

for module, name in [(os, "replace"), (os, "fsync"), (shutil, "rmtree"), (checkpoint, "save_file")]:
    setattr(module, name, counted(getattr(module, name)))
save = checkpoint.save

def noted(run_dir, what):
    result = save(run_dir, what)
    with open(path, "a") as file:
        file.write(f"{{what.images}} {{count[0]}}\\n")
    return result
checkpoint.save = noted
"""
log = logging.getLogger("killing")


class Stage:
    """One verb at debug size that saves after every second batch."""

    def __init__(self, verb: str, words: list[str], folder: Path, warm: Warm):
        self.verb, self.words, self.folder, self.warm = verb, words, folder, warm
        self.unbroken = folder / f"{verb}-unbroken"
        began = time.monotonic()
        child, _ = self.start(self.unbroken)
        assert child.wait() == 0, child.said
        self.seconds = time.monotonic() - began
        saves = (folder / f"{self.unbroken.name}.saves").read_text().split()
        self.operations = int(saves[-1])
        self.state = state_of(self.unbroken)
        log.info("%s: %.1f s unbroken, %d saves, %d operations", verb, self.seconds, len(saves) // 2, self.operations)

    def start(self, run_dir: Path, at: int = 0, where: str = ""):
        noted = self.folder / f"{run_dir.name}.saves"
        code = HOOK.format(at=at, where=where, noted=str(noted))
        config = ROOT / "configs" / self.verb / "debug.yaml"
        words = [self.verb, config, f"run_dir={run_dir}", "checkpoint_every=32", *self.words]
        return self.warm.start(words, self.folder / f"{run_dir.name}.txt", code), noted

    def killed(self, number: int, draw: random.Random) -> str:
        """Kills one run once or twice and continues it; what is wrong, or nothing."""
        run_dir, moments = self.folder / f"{self.verb}-{number}", []
        for again in range(draw.choice((1, 1, 2))):
            moments.append(self.kill(run_dir, draw, within_save=(number + again) % 2 == 0))
            if wrong := whole_after_kill(run_dir, self.folder / f"{run_dir.name}.saves"):
                return f"{'; '.join(moments)}: {wrong}"
        child, _ = self.start(run_dir)
        if child.wait() != 0:
            return f"{'; '.join(moments)}: does not go on: {child.said}"
        found = state_of(run_dir)
        wrong = [name for name, value in self.state.items() if found[name] != value]
        if not wrong:
            log.info("%s-%d: %s: the same", self.verb, number, "; ".join(moments))
            shutil.rmtree(run_dir)
        return f"{'; '.join(moments)}: differs in {', '.join(wrong)}" if wrong else ""

    def kill(self, run_dir: Path, draw: random.Random, within_save: bool) -> str:
        """Starts the run, anew where it came to its end before the kill, until a kill has met it; the moment."""
        while True:
            at, where = (draw.randint(1, self.operations), draw.choice(("before", "after"))) if within_save else (0, "")
            moment, began = draw.random() * self.seconds, time.monotonic()
            child, saves = self.start(run_dir, at, where)
            if not within_save:
                child.ended.wait(moment)
                child.kill(signal.SIGKILL)
            if child.wait() == -signal.SIGKILL:
                return f"{where} operation {at}" if within_save else f"after {moment:.2f} s"
            self.seconds = min(self.seconds, time.monotonic() - began)  # the machine has become faster
            shutil.rmtree(run_dir)
            saves.unlink(missing_ok=True)


def whole_after_kill(run_dir: Path, saves: Path) -> str:
    """The newest checkpoint is whole and holds at least the last save that was finished."""
    last = int(saves.read_text().split()[-2]) if saves.exists() else 0
    found = checkpoint.newest(run_dir) if run_dir.exists() else None
    images = 0 if found is None else found.images
    return f"saved at {last} images, but the newest whole checkpoint has {images}" if images < last else ""


def state_of(run_dir: Path) -> dict:
    """All that a run ends with, but for what depends on the machine."""
    found, best = checkpoint.newest(run_dir), run_dir / "best.json"
    machine = ("speed/", "memory/")
    steps = [(v.tag, e.step) for e in events.read(run_dir) for v in e.summary.value if not v.tag.startswith(machine)]
    assert len(steps) == len(set(steps)), f"{run_dir}: events are there twice"
    return {
        "images": found.images,
        "checkpoints": sorted(path.name for path in run_dir.glob("checkpoint-*")),
        "best": json.loads(best.read_text()) if best.exists() else None,
        "state": {name: value for name, value in found.state.items() if name != "files"},
        **{name: checkpoint.tensors_digest(group) for name, group in found.tensors.items()},
        "rows": [row["images"] for row in read_stats(run_dir)],
        "events": sorted(steps),
    }


def main(kills: int = 30, seed: int = 0) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    draw, wrong, began = random.Random(seed), [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="eeg-gan-kill-") as name, Warm() as warm:
        folder = Path(name)
        index = prepared(folder, warm)
        features = made(folder, warm, "embed", [index, "encoder=null", "classes=true"])
        stages = [
            Stage("encode", [index, "evaluate_every=64"], folder, warm),
            Stage("gan", [index, f"features={features}", "evaluate.every=null"], folder, warm),
        ]
        for number in range(kills):
            stage = stages[number % 3 == 2]
            if said := stage.killed(number, draw):
                wrong.append(said)
                log.error("%s-%d: %s", stage.verb, number, said)
    log.info("%d of %d runs ended as the unbroken one, in %.0f s", kills - len(wrong), kills, time.monotonic() - began)
    return 1 if wrong else 0


def prepared(folder: Path, warm: Warm) -> str:
    return f"loader.index={made(folder, warm, 'prepare', [])}/index.json"


def made(folder: Path, warm: Warm, verb: str, words: list[str]) -> Path:
    child = warm.run(
        [verb, ROOT / "configs" / verb / "debug.yaml", f"run_dir={folder}/{verb}", *words], folder / f"{verb}.txt"
    )
    assert child.returncode == 0, child.said
    return folder / verb


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
