"""The whole pipeline on simulated EEG of rendered images, on a CPU, in minutes; needs no file outside the package."""

import json
import logging
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from eeg_gan.data.loader import LoaderConfig, Reader
from eeg_gan.metrics.statistics import record
from eeg_gan.ops import computes_bfloat16
from eeg_gan.stages import demo_models, pipeline
from eeg_gan.stages.beside import Beside, Work
from eeg_gan.stages.loading import open_shards, read_generated
from eeg_gan.training import runtime
from eeg_gan.training.checkpoint import write_json
from eeg_gan.training.log import grid

log = logging.getLogger("eeg_gan")
LINES = (  # what the demo prints at the end: metric, what it is
    ("demo/lda_accuracy", "shrinkage LDA on the EEG, the score to beat"),
    ("encode/kmeans_accuracy", "stage 1: k-means accuracy of the EEG feature"),
    ("encode/knn_accuracy", "stage 1: kNN accuracy of the EEG feature"),
    ("align/retrieval_top1", "stage 2: the seen picture found among all held-out ones"),
    ("align/retrieval_top1_within_class", "stage 2: found among held-out pictures of its class"),
    ("generate/class_accuracy", "stage 3: generated pictures of the right class"),
    ("generate/class_accuracy_shuffled_eeg", "  the same with shuffled EEG"),
    ("generate/class_accuracy_real", "  the same for real held-out pictures"),
)

LANES = (  # groups of steps one after the other; lanes of a group, which need nothing of one another, side by side
    (("prepare",),),
    (("tower",), ("encode", "embed_triplet", "audit")),
    (("align", "embed", "image2eeg", "embed_image2eeg"), ("classifier",)),
    (("gan",),),
    (("generate", "generate_shuffled", "generate_image2eeg", "evaluate", "report"),),
)
RANKS = (("gan",),)  # the group whose step several processes share


@dataclass(frozen=True)
class Config:
    run_dir: str = "runs/demo"  # everything goes here; the same command again continues or says that all is done
    image_size: Literal[16, 32] = 32  # pixels of the rendered images
    images_per_class: int = 500  # different images of each of the 10 classes
    subjects: int = 4  # simulated persons; each sees every image once
    class_means: bool = True  # false takes class means out of the simulated responses: a control
    encode_images: int = 12_000  # trials for stage 1
    align_images: int = 40_000  # trials for stage 2
    image2eeg_images: int = 40_000  # trials for stage 4
    gan_images: int = 90_000  # images for stage 3
    judge_steps: int = 1200  # of the classifier that judges generated pictures
    tower_steps: int = 400  # of the image tower
    processes: Literal[1, 2] = 2  # that work side by side, each with its share of the threads
    seed: int = 0  # of every random draw


def run(config: Config) -> None:
    run_dir, steps = Path(config.run_dir), plan(config)
    with runtime.start("demo", config) as rt:
        if rt.done:
            _say(run_dir)
            return
        for lanes in LANES:
            _run_lanes(rt, [[steps[name] for name in lane] for lane in lanes], ranks=lanes == RANKS)
        metrics = json.loads((run_dir / "evaluate" / "metrics.json").read_text())
        metrics["demo/lda_accuracy"] = metrics.pop("lda/accuracy")
        metrics["demo/seconds"] = record(max(rt.seconds, _seconds_of_stages(run_dir, config.processes)))
        metrics["demo/peak_memory_gb"] = record(rt.record["peak_memory_gb"])
        write_json(run_dir / "metrics.json", metrics)
        write_pairs(run_dir)
        rt.finish(f"all stages in {rt.seconds:.0f} s, {rt.record['peak_memory_gb']:.1f} GB of memory at most")
        _say(run_dir)


def plan(config: Config) -> dict[str, Work]:
    """Every step by name, its config checked before the first one runs."""
    steps = pipeline.resolve(config.run_dir, stages(config))
    loader = LoaderConfig(index=f"{config.run_dir}/prepare/index.json")
    judge = demo_models.JudgeConfig(f"{config.run_dir}/classifier", loader, config.judge_steps, seed=config.seed)
    tower = demo_models.TowerTraining(f"{config.run_dir}/tower", loader, config.tower_steps, seed=config.seed)
    own = {"classifier": (demo_models.train_judge, judge), "tower": (demo_models.train_tower, tower)}
    return {step.name: (step.module.run, step.config) for step in steps} | own


def _run_lanes(rt: runtime.Runtime, lanes: list[list[Work]], ranks: bool) -> None:
    """The first lane in this process, the others each beside it; or the only step by several ranks."""
    processes = rt.config.processes
    if processes == 1:
        return _run_here(rt, [step for lane in lanes for step in lane])
    threads = torch.get_num_threads()
    each = max(threads // processes, 1)
    beside = lanes[1:] if not ranks else lanes * processes
    with Beside(beside, rt.name, each, ranks) as side:
        try:
            torch.set_num_threads(each if beside else threads)
            _run_here(rt, [] if ranks else lanes[0])
            side.join(lambda: rt.flag.signal is not None)
        finally:
            torch.set_num_threads(threads)
    _note_memory(rt, len(beside))
    rt.check_stop()


def _run_here(rt: runtime.Runtime, steps: list[Work]) -> None:
    for work, config in steps:
        work(config)
        _note_memory(rt, 0)
        rt.check_stop()


def _note_memory(rt: runtime.Runtime, beside: int) -> None:
    """The most that all processes can have held at once, from the most that each of them held."""
    own, largest = (resource.getrusage(who).ru_maxrss / 1e6 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    rt.record["peak_memory_gb"] = max(rt.record.get("peak_memory_gb", 0.0), own + beside * largest)  # from kilobytes
    rt.save_record()


def stages(config: Config) -> dict[str, dict[str, Any]]:
    """The pipeline of the demo, in the form in which a YAML names it."""
    seed = {"seed": config.seed}
    draw = {"gan": "{run_dir}/gan", "psi": 0.5, **seed}
    prior = {"features": "{run_dir}/embed_image2eeg", "measured": "{run_dir}/embed", "temperature": 1.0}
    own = {"features": "{run_dir}/embed", "prior": prior, **draw}
    tower = {"model": "{run_dir}/tower/model.json", "pretrained": "{run_dir}/tower/weights.safetensors"}
    augment = {"shift": 2, "noise": 0.2, "drop": 0.05, "scale": 0.2}
    simulated = {
        "image_size": config.image_size,
        "images_per_class": config.images_per_class,
        "subjects": config.subjects,
        "class_means": config.class_means,
        **seed,
    }
    judge = {
        "name": "classifier",
        "label": "demo-classifier",
        "weights": "{run_dir}/classifier/weights.safetensors",
        "image_size": config.image_size,
    }
    return {
        "prepare": {
            "source": {"name": "simulated", "simulated": simulated},
            "preprocess": {"highpass_hz": 0.5, "lowpass_hz": 40.0, "notch": True, "baseline": True},
            "split": {"by": "stimulus", "train": 0.84, "val": 0.08, "test": 0.08, **seed},
            "workers": 2,
        },
        "audit": seed,
        "encode": {
            "encoder": {"name": "erp", "dim": 64, "filters": 64, "subjects": True, "readout": True},
            "ridge": 3.0,
            "triplet": {"mining": "semi_hard"},
            "mix": 1.0,
            "augment": augment,
            "optim": {"lr": 2e-3, "schedule": "cosine", "weight_decay": 0.05, "warmup_images": 3000},
            "classes_per_batch": 10,
            "trials_per_class": 10,
            "total_images": config.encode_images,
            "evaluate_every": max(config.encode_images // 3, 1),
            **seed,
        },
        "embed_triplet": {"verb": "embed", "encoder": "{run_dir}/encode"},
        "align": {
            "encoder": "{run_dir}/encode",
            "tower": tower,
            "ridge": 1.5,
            "augment": augment,
            "batch": 200,
            "optim": {"lr": 1e-3, "schedule": "cosine", "weight_decay": 0.05},
            "total_images": config.align_images,
            "evaluate_every": max(config.align_images // 4, 1),
            **seed,
        },
        "embed": {"encoder": "{run_dir}/align"},
        "image2eeg": {
            "features": "{run_dir}/embed",
            "tower": tower,
            "regressor": {"hidden": 256},
            "optim": {"lr": 1e-3, "schedule": "cosine"},
            "total_images": config.image2eeg_images,
            "evaluate_every": max(config.image2eeg_images // 5, 1),
            **seed,
        },
        "embed_image2eeg": {"verb": "embed", "image2eeg": "{run_dir}/image2eeg"},
        "gan": {
            "features": "{run_dir}/embed",
            "generator": {"z_dim": 64, "w_dim": 64, "channel_base": 512, "channel_max": 32, "map_lr": 1.0},
            "discriminator": {"channel_base": 512, "channel_max": 32, "map_lr": 1.0},
            "g_optim": {"lr": 5e-3, "beta1": 0.0, "beta2": 0.99},
            "d_optim": {"lr": 5e-3, "beta1": 0.0, "beta2": 0.99},
            "augment": {"speed_kimg": 100},
            "r1_gamma": 0.05,
            "ema_half_life": 3000,
            "condition": {"noise": 0.4},
            "precision": "bfloat16" if computes_bfloat16() else "auto",
            "half_levels": 2,
            "total_images": config.gan_images,
            "snapshot_every": max(config.gan_images // 20, 1),
            "checkpoint_every": max(config.gan_images // 5, 1),
            **seed,
        },
        "generate": own,
        "generate_shuffled": {"verb": "generate", "condition": "shuffled", **own},
        "generate_image2eeg": {"verb": "generate", "features": "{run_dir}/embed_image2eeg", **draw},
        "evaluate": {
            "features": "{run_dir}/embed_triplet",
            "align": "{run_dir}/align",
            "aligned_features": "{run_dir}/embed",
            "image2eeg_features": "{run_dir}/embed_image2eeg",
            "generated": "{run_dir}/generate",
            "generated_shuffled": "{run_dir}/generate_shuffled",
            "generated_image2eeg": "{run_dir}/generate_image2eeg",
            "detector": judge,
            **seed,
        },
        "report": {"pipeline": "{run_dir}", "title": "eeg-gan demo: simulated EEG of rendered images"},
    }


def write_pairs(run_dir: Path, pairs: int = 48, columns: int = 8, zoom: int = 3) -> None:
    """pairs.png: the picture that was seen and what was generated from the EEG, of evenly spread held-out trials."""
    shards = open_shards(LoaderConfig(index=str(run_dir / "prepare" / "index.json")), ("test",))
    keys, generated = read_generated(run_dir / "generate")
    reader, place = Reader(shards, "test"), {key: i for i, key in enumerate(shards.keys("test"))}
    order = sorted(range(len(keys)), key=lambda i: reader.labels[place[keys[i]]])  # rows go through the classes
    picked = [order[i * len(keys) // pairs] for i in range(min(pairs, len(keys)))]
    seen = reader.batch([place[keys[i]] for i in picked])["image"]
    both = torch.cat([seen, generated[picked]], dim=3)  # side by side
    both = torch.nn.functional.pad(both, (2, 2, 2, 2), value=255)
    picture = Image.fromarray(grid(both, columns).permute(1, 2, 0).numpy())
    size = (picture.width * zoom, picture.height * zoom)
    picture.resize(size, Image.Resampling.NEAREST).save(run_dir / "pairs.png")


def _say(run_dir: Path) -> None:
    """The figures with their intervals, and where the report is."""
    metrics = json.loads((run_dir / "metrics.json").read_text())
    for name, meaning in LINES:
        m = metrics[name]
        chance = f"  chance {m['chance']:.3f}" if m["chance"] is not None else ""
        log.info("  %-58s %.3f  [%.3f, %.3f]%s", meaning, m["value"], m["low"], m["high"], chance)
    log.info("figures: %s\nreport:  %s", run_dir / "metrics.json", (run_dir / "report" / "report.html").resolve())


def _seconds_of_stages(run_dir: Path, processes: int) -> float:
    """Stages keep their time at every save, so that a killed start is not forgotten; lanes run at the same time."""
    seconds = {path.parent.name: json.loads(path.read_text())["seconds"] for path in run_dir.glob("*/run.json")}
    lanes = [[sum(seconds.get(name, 0.0) for name in lane) for lane in lanes] for lanes in LANES]
    return sum((sum if processes == 1 else max)(each) for each in lanes)
