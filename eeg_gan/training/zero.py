"""DeepSpeed's ZeRO: state in parts on the ranks, checkpoints whole.

A checkpoint is the same with and without: full float32 weights and optimiser state as safetensors, gathered from the
parts and given back to parts of any number. So DeepSpeed may come, go and change its level while a run goes on, nothing
of its own (pickles) is written or read, and every later stage reads the weights as they are.
"""

import contextlib
import copy
import functools
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import Tensor, nn

from eeg_gan.config import UserError
from eeg_gan.distributed import rank, world_size
from eeg_gan.training import replicas, watchdog, world
from eeg_gan.training.guard import Guard

LAUNCH = "start with torchrun --standalone --nproc_per_node N -m eeg_gan ..., or accelerate launch (one process too)"
OURS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")  # computed from `batch`
log = logging.getLogger("eeg_gan")


@functools.cache
def launcher_asks() -> str | None:
    """The DeepSpeed file that accelerate's launcher was given; "" where it was asked for DeepSpeed without one."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return None
    given = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    return "" if given.lower() == "none" else given


def asked(config: Any) -> str | None:
    """The DeepSpeed config that a stage or its launcher asks for; None for stages that train nothing."""
    if not hasattr(config, "engine"):
        return None
    path = config.engine.deepspeed or launcher_asks()
    if path == "":
        raise UserError(
            "accelerate launch was asked for DeepSpeed without a file; add --deepspeed_config_file "
            "launch/deepspeed/zero2.json, or leave --use_deepspeed out and set engine.deepspeed to that file"
        )
    return path


def read(path: str, clip_norm: float | None) -> dict[str, Any]:
    """A DeepSpeed config with what a stage's own config decides filled in; contradictions are refused."""
    try:
        given = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such DeepSpeed config; launch/deepspeed/ has zero1.json to zero3.json") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable DeepSpeed config: {error}") from None
    stage = given.get("zero_optimization", {}).get("stage")
    if stage not in (1, 2, 3):
        raise UserError(f"{path}: zero_optimization.stage is {stage!r}; it is 1, 2 or 3, or leave engine.deepspeed out")
    for key in ("optimizer", "scheduler"):
        if key in given:
            raise UserError(f"{path}: take {key} out; the optimiser and its rate are those of the stage's own config")
    for key in OURS:
        if given.get(key, "auto") not in ("auto", 1 if key == OURS[2] else "auto"):
            raise UserError(f"{path}: set {key} to auto; it follows from the stage's global batch and the launcher")
    if given.get("fp16", {}).get("enabled", False) not in (False, "auto"):
        raise UserError(f"{path}: fp16 is not offered, for it needs a loss scale; set bf16.enabled or neither")
    clip, wanted = given.get("gradient_clipping", "auto"), float(clip_norm or 0)
    if clip != "auto" and float(clip) != wanted:
        raise UserError(f"{path}: gradient_clipping is {clip}, but optim.clip_norm is {clip_norm}; set it to auto")
    half = given.get("bf16", {}).get("enabled", False) is True
    return given | {
        "gradient_clipping": wanted,  # left out, DeepSpeed would clip to 1
        "train_micro_batch_size_per_gpu": 1,  # a formality: no loader is prepared, losses are means already
        "train_batch_size": world_size(),
        "gradient_accumulation_steps": 1,
        "bf16": {**given.get("bf16", {}), "enabled": half},
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's own Adam for offloaded state is compiled on first use for minutes; torch's is the default
        "zero_force_ds_cpu_optimizer": given.get("zero_force_ds_cpu_optimizer", False),
    }


class Plugin(DeepSpeedPlugin):
    def set_deepspeed_weakref(self) -> None:
        """Left out: it tells transformers' loaders of the config, and no such model is built here."""


def accelerator(config: Any) -> Accelerator:
    """An accelerator whose `prepare` gives DeepSpeed engines; accelerate falls back silently, so it is looked at."""
    path = asked(config)
    ds = read(path, config.optim.clip_norm)
    backend = _join()
    ds["train_batch_size"] = world_size()
    plugin = Plugin(hf_ds_config=ds, zero3_init_flag=False)
    # without the backend, accelerate on a CPU believes in one process of rank 0
    found = Accelerator(deepspeed_plugin=plugin, kwargs_handlers=[InitProcessGroupKwargs(backend=backend)])
    if found.distributed_type != DistributedType.DEEPSPEED:
        raise UserError(f"{path} was asked for, but accelerate chose {found.distributed_type.value} instead; {LAUNCH}")
    return found


def _join() -> str:
    """Imports DeepSpeed and joins the launcher's processes; returns the backend of the device."""
    if "LOCAL_RANK" not in os.environ:
        raise UserError(f"DeepSpeed needs a launcher that numbers its processes; {LAUNCH}")
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true"):
        raise UserError(
            "ACCELERATE_USE_CPU is set, with which accelerate leaves DeepSpeed out without a word; unset it "
            "(without a GPU the CPU is taken anyway)"
        )
    has_gpu = torch.cuda.is_available()
    if not has_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError as error:
        raise UserError(f"engine.deepspeed: {error}; pip install 'eeg-gan[deepspeed]'") from None
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls, not ours
    # Serves inference alone, and would be compiled for a minute or two in the first start on each machine.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if has_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        timeout = watchdog.of_collectives()
        with world.joining(timeout):
            dist.init_process_group("cuda:nccl,cpu:gloo" if has_gpu else "gloo", timeout=timeout)
    backend = "nccl" if has_gpu else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    return backend


def half_type(accelerator: Accelerator) -> torch.dtype | None:
    return torch.bfloat16 if accelerator.state.deepspeed_plugin.deepspeed_config["bf16"]["enabled"] else None


class Cast(nn.Module):
    """A model whose weights DeepSpeed turned to bfloat16: inputs follow, results come back in float32."""

    def __init__(self, model: nn.Module, dtype: torch.dtype | None):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, *inputs: Any) -> Any:
        if self.dtype is None:
            return self.model(*inputs)
        inputs = tuple(_to(x, self.dtype) for x in inputs)
        # Here and not around the engine, which switches autocast off; it serves what a model makes float by itself.
        with torch.autocast(next(self.model.parameters()).device.type, self.dtype):
            outputs = self.model(*inputs)
        if isinstance(outputs, tuple):
            return tuple(_to(x, torch.float32) for x in outputs)
        return _to(outputs, torch.float32)


def _to(x: Any, dtype: torch.dtype) -> Any:
    return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x


@contextlib.contextmanager
def same_weights(network: nn.Module) -> Iterator[None]:
    """Around the making of an engine: its broadcast of rank 0's weights, which scalars break, becomes a check."""
    from deepspeed.runtime.engine import DeepSpeedEngine

    replicas.check(network.state_dict(), 0)
    former, DeepSpeedEngine._broadcast_model = DeepSpeedEngine._broadcast_model, lambda engine: None
    try:
        yield
    finally:
        DeepSpeedEngine._broadcast_model = former


def check_engine(engine: Any, wanted: dict[str, Any]) -> None:
    """Refuses an engine that is not the one that was asked for."""
    stage, level = wanted["zero_optimization"]["stage"], getattr(engine, "zero_optimization_stage", lambda: None)()
    if level is None or int(level) != stage:
        raise UserError(f"ZeRO {stage} was asked for, but {type(engine).__name__} of level {level} came; {LAUNCH}")
    started = int(os.environ["WORLD_SIZE"])
    if engine.world_size != started:
        raise UserError(f"DeepSpeed runs {engine.world_size} processes, but the launcher started {started}; {LAUNCH}")


class Twin:
    """A plain copy, on the CPU, of a model and its optimiser's state, from which parts are made and which they fill."""

    def __init__(self, model: nn.Module, optimiser: torch.optim.Optimizer):
        """Takes the state out of `optimiser`, whose parameters become parts."""
        self.source, self.model = model, copy.deepcopy(model).cpu()
        copies = dict(zip(model.parameters(), self.model.parameters(), strict=True))
        learning = [p for group in optimiser.param_groups for p in group["params"]]
        self.pairs = [(p, copies[p]) for p in learning]
        self.others = [(p, q) for p, q in copies.items() if not any(p is own for own in learning)]
        self.optimiser = torch.optim.Optimizer([q for _, q in self.pairs], {})
        self.optimiser.load_state_dict(
            {"state": optimiser.state_dict()["state"], "param_groups": self.optimiser.state_dict()["param_groups"]}
        )
        optimiser.state.clear()

    @torch.no_grad()
    def give(self, engine: Any) -> None:
        """Weights and optimiser state to the parts."""
        whole, base = self.optimiser.state, engine.optimizer.optimizer
        known = whole[self.pairs[0][1]] if self.pairs[0][1] in whole else {}
        moments = [key for key in known if key != "step"]
        if known:
            for flat in _flats(engine.optimizer):
                base.state[flat] = {key: torch.zeros_like(flat) for key in moments}
                if "step" in known:
                    base.state[flat]["step"] = _step(base, known["step"], flat)
            getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", lambda: None)()
        for p, q in self.pairs:
            _set(p, q.data)
            for key in moments:
                _set(p, whole[q][key], key)

    @torch.no_grad()
    def take(self, engine: Any) -> None:
        """Weights and optimiser state from the parts; all ranks call this."""
        from deepspeed import zero
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        base, flats = engine.optimizer.optimizer, _flats(engine.optimizer)
        known = base.state[flats[0]] if flats[0] in base.state else {}
        for p, q in self.pairs:
            q.copy_(safe_get_full_fp32_param(p))
            moments = {key: safe_get_full_optimizer_state(p, key).cpu().clone() for key in known if key != "step"}
            step = {"step": torch.as_tensor(float(known["step"]))} if "step" in known else {}
            if known:
                self.optimiser.state[q] = {**step, **moments}
        for p, q in self.others:
            with zero.GatheredParameters([p], enabled=hasattr(p, "ds_id")):
                q.copy_(p)
        for own, other in zip(self.model.buffers(), self.source.buffers(), strict=True):
            own.copy_(other)


def _flats(optimizer: Any) -> list[Tensor]:
    """The float32 parts of this rank, each a vector: of ZeRO 3, of 1 and 2, and of ZeRO 1 in bfloat16."""
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(optimizer, name):
            return getattr(optimizer, name)
    raise AssertionError(f"{type(optimizer).__name__} is no optimizer of ZeRO")


def _step(base: torch.optim.Optimizer, step: Tensor, flat: Tensor) -> Any:
    """The count of steps as an optimiser keeps it: DeepSpeed's own as a number, a fused one beside the weights."""
    if type(base).__module__.startswith("deepspeed"):
        return int(step)
    fused = any(group.get("fused") or group.get("capturable") for group in base.param_groups)
    return step.detach().float().clone().to(flat.device if fused else "cpu")


def _set(p: nn.Parameter, value: Tensor, key: str | None = None) -> None:
    """Sets this rank's part of a weight, or of a moment of it, from the whole."""
    from deepspeed import utils

    value = value.to(p.device if p.device.type != "meta" else "cpu")
    if hasattr(p, "ds_id"):  # DeepSpeed's own setter forgets that the last part may be padded
        size = p.ds_tensor.numel()
        padded = torch.zeros(size * world_size(), dtype=value.dtype, device=value.device)
        padded[: value.numel()] = value.reshape(-1)
        part = padded[rank() * size : (rank() + 1) * size]
        if key is None:
            utils.safe_set_local_fp32_param(p, part)
        else:
            utils.safe_set_local_optimizer_state(p, part, key)
    elif key is None:
        utils.safe_set_full_fp32_param(p, value)
    else:
        utils.safe_set_full_optimizer_state(p, value, key)


class Sharded:
    """Backward and steps of one network of a GAN under ZeRO 1 or 2; the same words as `averaging.Averaged`.

    The inner network is called, never the engine: engines end a step with each backward they have seen, and R1 and path
    lengths go twice through a network. ZeRO 3 takes weights away that the second derivative still needs.
    """

    def __init__(self, network: nn.Module, optimiser: torch.optim.Optimizer, path: str, clip_norm: float | None):
        config = read(path, clip_norm)
        _join()
        import deepspeed

        config["train_batch_size"] = world_size()
        self.network, self.twin = network, Twin(network, optimiser)
        with same_weights(network):
            self.engine = deepspeed.initialize(model=network, optimizer=optimiser, config=config)[0]
        check_engine(self.engine, config)
        self.twin.give(self.engine)

    def zero(self) -> None:
        """Nothing to do: a step forgets its gradient."""

    def backward(self, loss: Tensor, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss)

    def step(self, guard: Guard, kind: str) -> Tensor:
        """DeepSpeed leaves a step out by itself where the norm of the gradient is not finite."""
        self.engine.step()
        norm = torch.as_tensor(self.engine.get_global_grad_norm(), dtype=torch.float32)
        guard.count(torch.as_tensor(float(self.engine.optimizer.overflow), device=norm.device), kind)
        return norm.detach()

    def whole(self) -> torch.optim.Optimizer:
        """The optimiser with the state of all parameters, for a checkpoint; all ranks call this."""
        self.twin.take(self.engine)
        return self.twin.optimiser

    def reload(self) -> None:
        """After a checkpoint was loaded into the network and `twin.optimiser`: the parts follow."""
        self.twin.model.load_state_dict(self.network.state_dict())
        self.twin.give(self.engine)


def check_gan(config: Any) -> None:
    """gan takes ZeRO 1 and 2 in float32; said before its run directory is claimed."""
    path = asked(config)
    if path is None:
        return
    for clip_norm in (config.g_optim.clip_norm, config.d_optim.clip_norm):
        _check_gan(path, read(path, clip_norm))


def _check_gan(path: str, config: dict[str, Any]) -> None:
    if config["zero_optimization"]["stage"] == 3:
        raise UserError(
            f"{path} asks for ZeRO 3, under which R1 and path lengths fail: ZeRO 3 gives weights back after a forward, "
            "and the derivative of a derivative still needs them; take launch/deepspeed/zero2.json"
        )
    if config["bf16"]["enabled"]:
        raise UserError(f"{path} asks for bfloat16 weights; gan keeps float32 ones and has `precision` for its layers")
