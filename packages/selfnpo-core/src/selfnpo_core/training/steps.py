"""Backward passes and the optimizer's step, under each engine, and the optimizer's state in a form common to all.

    WholeSteps   one process, or several by data parallelism (DDP)
    SplitSteps   FSDP2 (2304.11277): the base's weights in pieces, or all weights, gradients and the optimizer's state
    ZeroSteps    DeepSpeed's ZeRO (1910.02054), stages 1 to 3: optimizer, gradients, weights in pieces over the ranks

The state holds whole tensors, named INDEX.KEY as in torch's own `state_dict`, so that any engine on any number of
processes goes on from it. Collecting and loading it is for all processes together.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from selfnpo_core.errors import RunError
from selfnpo_core.system import private
from selfnpo_core.system.processes import total
from selfnpo_core.training.accelerators import keep_whole, make_optimizer, size_buckets
from selfnpo_core.training.recipe import Recipe
from selfnpo_core.training.sharding import entire, like, shape_of, walk, whole
from selfnpo_core.training.streaming import Walk

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class UpdateResult:
    """Of one update: mean loss over all processes, norm of the gradient before clipping, whether weights moved."""

    loss: float
    grad_norm: float
    moved: bool
    skipped: bool = False
    """Whether NaN or infinity kept the weights as they were."""


class Steps(ABC):
    """The optimizer of a run. `network` is to be called for the student's forwards."""

    network: nn.Module

    def __init__(self, accelerator: Accelerator, recipe: Recipe, parameters: Mapping[str, nn.Parameter]):
        self.accelerator, self.recipe = accelerator, recipe
        self.parameters = dict(parameters)
        self._losses: list[Tensor] = []

    def part(self) -> AbstractContextManager[Any]:
        """A context for one part of an update: its forward and `backward`."""
        context: AbstractContextManager[Any] = self.accelerator.accumulate(self.network)
        return context

    @abstractmethod
    def backward(self, loss: Tensor) -> None: ...

    @abstractmethod
    def finish(self) -> UpdateResult:
        """After the last part: the step, if loss and gradient are finite."""

    @abstractmethod
    def set_rate(self, rate: float) -> None: ...

    @abstractmethod
    def state(self) -> tuple[Walk, dict[str, Any]]:
        """Tensors and what json can hold."""

    @abstractmethod
    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """After the weights themselves were loaded."""

    def _loss(self) -> float:
        """The mean over this update's parts and over all processes."""
        mean = torch.stack(self._losses).double().mean()
        self._losses = []
        return float(total(mean) / self.accelerator.num_processes)


class TorchSteps(Steps):
    """An optimizer of torch's, prepared by Accelerate. How the network is, and the gradient's norm, is an engine's."""

    def __init__(
        self, accelerator: Accelerator, recipe: Recipe, network: nn.Module, parameters: Mapping[str, nn.Parameter]
    ):
        super().__init__(accelerator, recipe, parameters)
        self.network, self.optimizer = self._prepare(network, make_optimizer(parameters.values(), recipe))

    @abstractmethod
    def _prepare(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]: ...

    @abstractmethod
    def _norm(self) -> float:
        """Of the gradient, which is clipped."""

    def backward(self, loss: Tensor) -> None:
        self._losses.append(loss.detach())
        self.accelerator.backward(loss)

    def finish(self) -> UpdateResult:
        loss, scaler = self._loss(), self.accelerator.scaler
        norm = self._norm()
        broken = scaler is None and not (math.isfinite(loss) and math.isfinite(norm))
        if not broken:  # an fp16 scaler skips a step whose gradient is not finite, and tries a smaller scale
            self.optimizer.step()
        self.optimizer.zero_grad()
        moved = not broken and not self.optimizer.step_was_skipped
        return UpdateResult(loss=loss, grad_norm=norm, moved=moved, skipped=broken or not math.isfinite(loss))

    def set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def state(self) -> tuple[Walk, dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        scalars: dict[str, Any] = {}
        for index, values in self.optimizer.state_dict()["state"].items():
            for key, value in values.items():
                target: dict[str, Any] = tensors if isinstance(value, Tensor) else scalars
                target[f"{index}.{key}"] = value
        return walk(tensors), {"scalars": scalars}

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        state: dict[int, dict[str, Any]] = {}
        parameters = list(self.parameters.values())
        for name, value in {**tensors, **values["scalars"]}.items():
            index, _, key = name.partition(".")
            whole = isinstance(value, Tensor) and value.shape == parameters[int(index)].shape
            state.setdefault(int(index), {})[key] = like(value, parameters[int(index)]) if whole else value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})


class WholeSteps(TorchSteps):
    """A network that every process has all of."""

    def _prepare(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
        private.leave_out_of_ddp(network, frozen)  # all have read the same base, which may lie in 8 bits
        prepared: tuple[nn.Module, Any] = self.accelerator.prepare(network, optimizer, device_placement=[False, True])
        return prepared

    def _norm(self) -> float:
        return float(self.accelerator.clip_grad_norm_(self.parameters.values(), self.recipe.max_grad_norm or math.inf))


class SplitSteps(TorchSteps):
    """A network that torch's `fully_shard` has cut. A LoRA on it is whole on every rank, and so is averaged here."""

    def _prepare(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        return network, self.accelerator.prepare_optimizer(optimizer)

    def _norm(self) -> float:
        for parameter in self.parameters.values():
            if parameter.grad is not None and not isinstance(parameter.grad, DTensor):
                parameter.grad.copy_(total(parameter.grad) / self.accelerator.num_processes)
        norm: Tensor = nn.utils.clip_grad_norm_(self.parameters.values(), self.recipe.max_grad_norm or math.inf)
        return float(entire(norm))


class ZeroSteps(Steps):
    """A DeepSpeed engine, made by Accelerate's plugin."""

    def __init__(
        self, accelerator: Accelerator, recipe: Recipe, network: nn.Module, parameters: Mapping[str, nn.Parameter]
    ):
        super().__init__(accelerator, recipe, parameters)
        trained = [shape_of(parameter).numel() for parameter in parameters.values()]
        size_buckets(accelerator, trained, [shape_of(parameter).numel() for parameter in network.parameters()])
        if recipe.train == "lora":  # small, and asked for at every step
            keep_whole(accelerator, max(trained))
        self.network, _ = accelerator.prepare(network, make_optimizer(parameters.values(), recipe))
        self._engine: Any = self.network
        self._optimizer: Any = self._engine.optimizer  # ZeRO's
        self._parts, self._broken = 0, False

    def backward(self, loss: Tensor) -> None:
        """DeepSpeed steps within the last part's backward pass, so what is not finite must be seen before it."""
        self._losses.append(loss.detach())
        self._parts += 1
        if self._broken or not math.isfinite(float(total(loss.detach()))):
            if not self._broken and self._parts > 1:
                raise RunError(
                    "a loss that is not finite after the first part of an update cannot be skipped under ZeRO: lower "
                    "learning_rate, or use grad_accumulation 1"
                )
            self._broken = True
            return
        self.accelerator.backward(loss)

    def finish(self) -> UpdateResult:
        broken, self._broken, self._parts = self._broken, False, 0
        loss = self._loss()
        if broken:
            return UpdateResult(loss=loss, grad_norm=math.nan, moved=False, skipped=True)
        norm = float(self._engine.get_global_grad_norm() or 0.0)
        skipped = private.overflowed(self._optimizer)
        if not skipped and not math.isfinite(norm):
            raise RunError(
                f"the gradient's norm is {norm}, which ZeRO-3 cannot skip: lower learning_rate, and go on from the "
                "last checkpoint with --resume"
            )
        return UpdateResult(loss=loss, grad_norm=norm, moved=not skipped, skipped=skipped)

    def set_rate(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def state(self) -> tuple[Walk, dict[str, Any]]:
        from deepspeed.utils import safe_get_full_optimizer_state

        known, parameters = self._flat_states(), list(self.parameters.values())
        step = torch.as_tensor(known[0]["step"], dtype=torch.float32).reshape(()) if known else None
        outlines: dict[str, Tensor] = {}
        for index, parameter in enumerate(parameters if known else ()):
            shapes = {"step": (), **dict.fromkeys(MOMENTS, shape_of(parameter))}
            outlines |= {f"{index}.{key}": torch.empty(shape, device="meta") for key, shape in shapes.items()}

        def one_by_one(names: Sequence[str]) -> Iterator[Tensor]:
            for name in names:
                index, _, key = name.partition(".")
                parameter = parameters[int(index)]
                if key == "step":
                    assert step is not None
                    yield step
                else:
                    yield safe_get_full_optimizer_state(parameter, key).reshape(shape_of(parameter))

        return Walk(outlines=outlines, one_by_one=one_by_one), {"scalars": {}}

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        if tensors:
            self._begin_states(tensors["0.step"])
        for index, parameter in enumerate(self.parameters.values()):
            with whole([parameter]):
                value = parameter.detach().float().clone()
            _set(parameter, value)
            for key in MOMENTS if tensors else ():
                _set(parameter, tensors[f"{index}.{key}"].to(value.device), key)

    def _flat_states(self) -> list[dict[str, Any]]:
        known = private.inner_state(self._optimizer)
        states = (known.get(flat, {}) for flat in private.flat_partitions(self._optimizer))
        return [state for state in states if "step" in state]

    def _begin_states(self, step: Tensor) -> None:
        """The optimizer's state as after `step` updates, all zero yet; DeepSpeed makes it at the first step only."""
        known = private.inner_state(self._optimizer)
        for flat in private.flat_partitions(self._optimizer):
            moments = {key: torch.zeros_like(flat.data) for key in MOMENTS}
            known[flat] = {"step": step.clone().float(), **moments}
        private.link_states(self._optimizer)


def _set(parameter: Any, value: Tensor, key: str | None = None) -> None:
    """The optimizer's float32 copy of a parameter, or a moment of it, from whole values."""
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    if private.is_cut(parameter):  # DeepSpeed's own cutting leaves the padding of the last piece out
        value = _own_piece(value, parameter)
        set_copy, set_moment = safe_set_local_fp32_param, safe_set_local_optimizer_state
    else:
        set_copy, set_moment = safe_set_full_fp32_param, safe_set_full_optimizer_state
    set_copy(parameter, value) if key is None else set_moment(parameter, value, key)


def _own_piece(value: Tensor, parameter: Any) -> Tensor:
    """This rank's piece of whole values, padded with zeros as ZeRO-3 does."""
    size = private.piece_of(parameter).numel()
    own = value.reshape(-1)[size * dist.get_rank() : size * (dist.get_rank() + 1)]
    return torch.cat([own, own.new_zeros(size - own.numel())])


def make_steps(
    accelerator: Accelerator, recipe: Recipe, network: nn.Module, parameters: Mapping[str, nn.Parameter]
) -> Steps:
    """The engine that the accelerator and the recipe stand for."""
    kind: type[TorchSteps | ZeroSteps] = SplitSteps if recipe.engine == "fsdp2" else WholeSteps
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        kind = ZeroSteps
    return kind(accelerator, recipe, network, parameters)
