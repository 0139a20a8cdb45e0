"""Accelerate's objects, built from a recipe: the accelerator, the optimizer, the learning rate, the trackers."""

import importlib.util
import logging
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    ProjectConfiguration,
)
from torch import nn

from selfnpo_core.errors import InputError, RunError
from selfnpo_core.system import private
from selfnpo_core.training.deepspeed_settings import merged, read_settings, with_buckets
from selfnpo_core.training.recipe import Recipe

AMP = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def on_cpu(recipe: Recipe) -> bool:
    return recipe.device == "cpu" or not torch.cuda.is_available()


def make_accelerator(recipe: Recipe, logs: Path | None = None) -> Accelerator:
    """The recipe's engine, over the processes that a launcher has started, or in this one alone.

    Accelerate's global state is made anew, so runs may follow one another. It falls back in silence where it cannot do
    what it was asked (to one process, or to DDP); here that is an error.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    engine = check_engine(recipe, processes)
    cpu = on_cpu(recipe)
    private.forget_accelerator(processes=not dist.is_initialized())
    together: dict[str, Any] = {}
    handlers: list[Any] = []
    launched = "RANK" in os.environ  # also with one process, which Accelerate then takes for one of several
    if launched or processes > 1:
        timeout = timedelta(seconds=recipe.process_timeout)
        handlers.append(InitProcessGroupKwargs(backend="gloo" if cpu else "nccl", timeout=timeout))
    if engine.startswith("zero"):
        together["deepspeed_plugin"] = _deepspeed_plugin(recipe, int(engine[-1]))
    else:
        together["cpu"] = cpu
        handlers.append(DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True))
    accelerator = Accelerator(
        mixed_precision="no" if engine.startswith("zero") else recipe.mixed_precision,
        gradient_accumulation_steps=recipe.grad_accumulation,
        kwargs_handlers=handlers,
        log_with=list(recipe.trackers) or None,
        project_config=None if logs is None else ProjectConfiguration(str(logs.parent), logging_dir=str(logs)),
        **together,
    )
    several = {"MULTI_CPU", "MULTI_GPU"}
    alone = {"NO", *several} if launched else {"NO"}
    expected = {"single": alone, "ddp": several, "fsdp2": {*several, "NO"}}.get(engine, {"DEEPSPEED"})
    if (plugin := accelerator.state.deepspeed_plugin) is not None:
        plugin.dschf = None  # else transformers would load text encoders in pieces too
    got = accelerator.distributed_type.value
    if got not in expected or accelerator.num_processes != processes:
        raise RunError(
            f"engine {engine} on {processes} processes became {got} on {accelerator.num_processes}: start it by "
            "torchrun, accelerate launch or deepspeed, whose settings must not contradict the recipe"
        )
    return accelerator


def check_engine(recipe: Recipe, processes: int) -> str:
    """The engine by name ("single", "ddp", "fsdp2", "zero1" to "zero3"), or `InputError` for what cannot be."""
    fp16, cuda = recipe.mixed_precision == "fp16", torch.cuda.is_available()
    if recipe.device == "cuda" and not cuda:
        raise InputError("device is cuda, and there is no CUDA GPU: use auto or cpu")
    if fp16 and (recipe.device == "cpu" or not cuda):
        raise InputError("mixed_precision fp16 needs a CUDA GPU: use bf16 or no")
    _check_packages(recipe)
    if recipe.group_offload and (recipe.device == "cpu" or not cuda):
        raise InputError("group_offload keeps weights off a GPU, and here is none: leave it out")
    split = recipe.engine.startswith(("zero", "fsdp"))
    if split and "RANK" not in os.environ:
        raise InputError(
            f"engine {recipe.engine} needs a launcher, also on one GPU: deepspeed --num_gpus 1 tools/train.py …, or "
            "torchrun --nproc-per-node 1 tools/train.py …"
        )
    if not recipe.engine.startswith("zero") and (recipe.offload_optimizer or recipe.offload_parameters):
        raise InputError("offload_optimizer and offload_parameters are DeepSpeed's: use engine zero2 or zero3")
    if recipe.deepspeed is not None and not recipe.engine.startswith("zero"):
        raise InputError(f"deepspeed {recipe.deepspeed} is for DeepSpeed's engines: use engine zero1, zero2 or zero3")
    if not split:
        return "ddp" if processes > 1 else "single"
    if fp16:
        raise InputError(f"engine {recipe.engine} keeps float32 copies of bf16 at most: use mixed_precision bf16")
    if recipe.optimizer == "adamw8bit":
        raise InputError(f"optimizer {recipe.optimizer} cannot be split by {recipe.engine}: use adamw, or engine ddp")
    if recipe.offload_parameters and recipe.engine != "zero3":
        raise InputError("offload_parameters needs engine zero3, which alone splits the weights")
    if recipe.engine in ("zero3", "fsdp2") and recipe.sample_every:
        raise InputError(
            f"sample_every cannot draw while weights lie in pieces (engine {recipe.engine}): set it to 0, and draw "
            "from the run's npo folder (tools/render.py)"
        )
    return recipe.engine


def _deepspeed_plugin(recipe: Recipe, stage: int) -> DeepSpeedPlugin:
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if on_cpu(recipe):  # else a helper is compiled at first use, for a minute
        private.leave_out_helpers(["deepspeed_shm_comm"])
    return DeepSpeedPlugin(hf_ds_config=zero_settings(recipe, stage))


def zero_settings(recipe: Recipe, stage: int) -> dict[str, Any]:
    """The recipe's settings for DeepSpeed, or what the user's file makes of them."""
    settings = _zero_settings(recipe, stage)
    if recipe.deepspeed is None:
        return settings
    return merged(settings, read_settings(recipe.deepspeed), recipe.deepspeed)


def _zero_settings(recipe: Recipe, stage: int) -> dict[str, Any]:
    """ZeRO's settings (1910.02054). Weights keep their types; autocast is DeepSpeed's, which ends others'."""
    cuda = recipe.device != "cpu" and torch.cuda.is_available()
    zero: dict[str, Any] = {"stage": stage}
    if recipe.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": cuda}
    if stage == 3:
        # nothing stays whole between uses, so that the teacher's pieces can take the student's place
        zero |= {"stage3_max_reuse_distance": 0, "stage3_param_persistence_threshold": 0}
        if recipe.offload_parameters:
            zero["offload_param"] = {"device": "cpu", "pin_memory": cuda}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": recipe.batch_size,
        "gradient_accumulation_steps": recipe.grad_accumulation,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": recipe.max_grad_norm or 0.0,
        "steps_per_print": sys.maxsize,
        "wall_clock_breakdown": False,
    }
    if (amp := AMP[recipe.mixed_precision]) is not None:
        settings["torch_autocast"] = {"enabled": True, "dtype": str(amp).removeprefix("torch.")}
    return settings


def keep_whole(accelerator: Accelerator, numbers: int) -> None:
    """Before the network is prepared: ZeRO-3 is to keep tensors of so many numbers or fewer whole on every rank."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None and plugin.zero_stage == 3:
        plugin.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = numbers + 1


def size_buckets(accelerator: Accelerator, trained: Sequence[int], every: Sequence[int]) -> None:
    """Before the network is prepared: DeepSpeed's buckets for tensors of these sizes. See `with_buckets`."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        zero = plugin.deepspeed_config["zero_optimization"]
        zero.update(with_buckets(zero, trained, every))


def zero3_settings(accelerator: Accelerator) -> Mapping[str, Any] | None:
    """DeepSpeed's, where it cuts weights."""
    plugin = accelerator.state.deepspeed_plugin
    return plugin.deepspeed_config if plugin is not None and plugin.zero_stage == 3 else None


def start_trackers(accelerator: Accelerator, recipe: Recipe) -> None:
    """Begin logging with the recipe as the run's configuration."""
    if recipe.trackers:
        plain = {key: _plain(value) for key, value in recipe.model_dump().items()}
        accelerator.init_trackers(recipe.project, config=plain)


def make_optimizer(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW (1711.05101), or its 8-bit form (2110.02861)."""
    settings: dict[str, Any] = {
        "lr": recipe.learning_rate,
        "betas": (recipe.adam_beta1, recipe.adam_beta2),
        "weight_decay": recipe.weight_decay,
    }
    if recipe.optimizer != "adamw8bit":
        return torch.optim.AdamW(parameters, **settings, fused=recipe.optimizer == "adamw_fused" or None)
    import bitsandbytes

    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(parameters, **settings)
    return optimizer


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """Learning rate of update `step`, the first being 1: linear warm-up, then the schedule down to `steps`."""
    warm = min(1.0, step / (recipe.warmup_steps + 1))
    left = max(1, recipe.steps - recipe.warmup_steps)
    done = min(1.0, max(0.0, (step - 1 - recipe.warmup_steps) / left))
    factor = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return recipe.learning_rate * warm * factor[recipe.lr_schedule]


def seed_for(*parts: int) -> int:
    """One seed from several numbers, such as (seed, rank, step), without visible relation between neighbours."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _check_packages(recipe: Recipe) -> None:
    wanted: dict[str, str] = {name: name for name in recipe.trackers}
    if recipe.optimizer == "adamw8bit":
        wanted["optimizer adamw8bit"] = "bitsandbytes"
    if recipe.base_storage == "int8":
        wanted["base_storage int8"] = "torchao"
    if recipe.engine.startswith("zero"):
        wanted[f"engine {recipe.engine}"] = "deepspeed"
    for setting, package in wanted.items():
        if importlib.util.find_spec(package) is None:
            raise InputError(f"{setting} needs the package {package}: pip install {package}")


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool) else str(value)
