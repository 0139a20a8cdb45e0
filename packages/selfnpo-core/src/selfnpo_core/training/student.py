"""The three sets of weights of a run, and which of them the network uses right now.

    student   is trained       teacher   moving average of the student       base   what both began as

As a LoRA, student and teacher are two adapters, "npo" and "teacher", on one copy of the base, and changing from one
to another sets one attribute a layer. With full weights they are copies of the network, float32 whatever the base
is, and changing assigns one of them to `backbone.denoiser`. Outside a `role` block the student is in use.
Drift is ‖Δθ‖/‖θ‖ over the whole network; of a LoRA, Δ = s·B·A, ‖B·A‖² = Σ (BᵀB)∘(AAᵀ).
"""

import copy
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from selfnpo_core.ema import ema_update
from selfnpo_core.errors import InputError, RunError
from selfnpo_core.models.backbone import Backbone, Negative
from selfnpo_core.models.storage import give_back, place_rest, store_base
from selfnpo_core.system.files import save_tensors
from selfnpo_core.system.processes import is_main
from selfnpo_core.training.recipe import Recipe
from selfnpo_core.training.sharding import collect, entire, fill, pieces, split, whole

Role = Literal["student", "teacher", "base"]
NPO, TEACHER = "npo", "teacher"


@dataclass(frozen=True, kw_only=True)
class Saver:
    """write: the weights file of an npo folder, into a directory. tensors: what it is expected to hold."""

    write: Callable[[Path], None]
    tensors: Mapping[str, Tensor]


class Student(ABC):
    """Weights in training. `network` is what the optimizer and Accelerate see."""

    backbone: Backbone
    network: nn.Module
    parameters: dict[str, nn.Parameter]
    teacher: dict[str, nn.Parameter]

    @abstractmethod
    def role(self, role: Role) -> Any:
        """A context in which `backbone.predict` uses these weights."""

    @abstractmethod
    def drift(self) -> float:
        """‖Δθ‖/‖θ‖."""

    @abstractmethod
    def negative(self) -> Negative:
        """The student as `Backbone.draw_samples` wants it, inside `role("base")`."""

    @abstractmethod
    def saving(self) -> AbstractContextManager["Saver"]:
        """What an npo folder is written with. To be entered by all processes together; one of them then writes."""

    @abstractmethod
    def close(self) -> None:
        """Leave the backbone as it was found."""

    @abstractmethod
    def use(self, prepared: nn.Module) -> None:
        """Train through this wrapper of `network` (Accelerate's) from now on."""

    def place(self, device: torch.device) -> None:
        """Bring what is trained to the training device, before it is prepared."""
        self.network.to(device)

    def before_close(self) -> None:  # noqa: B027
        """While the network is still prepared."""

    def update_teacher(self, decay: float) -> None:
        """On every rank, what it holds."""
        ema_update(pieces(self.teacher.values()), pieces(self.parameters.values()), decay)

    def collect(self, keep: bool) -> dict[str, dict[str, Tensor]]:
        """Whole weights, in the host's memory where they are to be kept; to be called by all processes together."""
        return {"student": collect(self.parameters, keep), "teacher": collect(self.teacher, keep)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        for part, own in (("student", self.parameters), ("teacher", self.teacher)):
            if state[part].keys() != own.keys():
                raise RunError(f"the checkpoint's {part} has other layers than the model: resume with its base")
            fill(own, state[part])

    @property
    def trained_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters.values())

    @staticmethod
    def _measure(weights: Iterable[Tensor]) -> float:
        """‖θ‖, or NaN of weights that are not there (on the meta device)."""
        weights = list(weights)
        return math.nan if any(tensor.is_meta for tensor in weights) else _norm(weights)


class LoraStudent(Student):
    """Two adapters on one base. Their weights are float32 even where the base's are not."""

    def __init__(self, backbone: Backbone, recipe: Recipe, offload: torch.device | None = None):
        self.backbone, self.network = backbone, backbone.denoiser
        if any(isinstance(module, LoraLayer) for module in self.network.modules()):
            raise InputError("the model already carries a LoRA: fuse it or load the model without it")
        self.network.requires_grad_(False)
        self._base_norm = self._measure(self.network.parameters())
        self._targets = lora_target_modules(backbone, recipe.targets)
        store_base(self.network, recipe.base_storage, backbone.name, offload)
        self._add_adapters(recipe)
        self._layers: list[Any] = [m for m in self.network.modules() if isinstance(m, LoraLayer)]
        named = dict(self.network.named_parameters())
        names = [name for name in named if f".{NPO}." in name and ".lora_" in name]
        self.parameters = {name.replace(f".{NPO}.", "."): named[name] for name in names}
        self.teacher = {n.replace(f".{NPO}.", "."): named[_teacher_of(n)] for n in names}
        for name in names:
            named[name].requires_grad_(True)
            named[_teacher_of(name)].requires_grad_(False).copy_(named[name].detach())
        self._activate([NPO])
        self._split, self._offloaded = recipe.engine == "fsdp2", offload is not None
        self._stored = recipe.base_storage != "same" or offload is not None

    def place(self, device: torch.device) -> None:
        """Adapters stay whole and on the device, whatever becomes of the base."""
        if self._offloaded:
            place_rest(self.network, device)
        elif self._split:
            adapters = [*self.parameters.values(), *self.teacher.values()]
            for parameter in adapters:
                parameter.data = parameter.data.to(device)
            split(self.network, device, adapters)
        else:
            self.network.to(device)

    def _add_adapters(self, recipe: Recipe) -> None:
        alpha: Any = int(recipe.alpha) if recipe.alpha.is_integer() else recipe.alpha
        add = getattr(self.network, "add_adapter", None)  # diffusers' own, which lets its savers find the adapter
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # two adapters are meant
            torch.manual_seed(recipe.seed)
            for name in (NPO, TEACHER):
                lora = LoraConfig(r=recipe.rank, lora_alpha=alpha, target_modules=self._targets)
                try:
                    add(lora, adapter_name=name) if add else inject_adapter_in_model(lora, self.network, name)
                except ValueError as error:
                    raise InputError(f"targets '{recipe.targets}': {' '.join(str(error).split())}") from None
        for name, parameter in self.network.named_parameters():
            if ".lora_" in name:
                parameter.data = parameter.data.float()

    @contextmanager
    def role(self, role: Role) -> Iterator[None]:
        prepared = self.backbone.denoiser
        if role == "base":
            self.backbone.denoiser = self.network  # sampling pipelines want the network itself
        self._activate({"student": [NPO], "teacher": [TEACHER], "base": []}[role])
        try:
            yield
        finally:
            self._activate([NPO])
            self.backbone.denoiser = prepared

    def use(self, prepared: nn.Module) -> None:
        self.backbone.denoiser = prepared

    @torch.no_grad()
    def drift(self) -> float:
        squares = []
        with whole(self.parameters.values()):
            for layer in self._layers:
                a = layer.lora_A[NPO].weight.flatten(1)  # (r, in·k·k)
                b = layer.lora_B[NPO].weight.flatten(1)  # (out, r)
                squares.append(layer.scaling[NPO] ** 2 * ((b.T @ b) * (a @ a.T)).sum())
        return float(torch.stack(squares).double().sum().clamp(min=0).sqrt()) / self._base_norm

    def negative(self) -> Negative:
        return NPO

    @contextmanager
    def saving(self) -> Iterator[Saver]:
        def write(directory: Path) -> None:
            self.backbone.save_lora(directory, NPO)

        with self.role("base"), whole(self.parameters.values()):
            yield Saver(write=write, tensors={name: p.detach() for name, p in self.parameters.items()})

    def close(self) -> None:
        self.backbone.denoiser = self.network
        if self._stored:
            give_back(self.network)
        unload = getattr(self.network, "unload_lora", None)
        if unload is not None:
            unload()
        else:
            recurse_remove_peft_layers(self.network)
            del self.network.peft_config

    def _activate(self, adapters: list[str]) -> None:
        for layer in self._layers:
            layer._active_adapter = adapters


class FullStudent(Student):
    """Copies of the whole network; the backbone's own stays the frozen base, in the dtype it was loaded in."""

    def __init__(self, backbone: Backbone, recipe: Recipe):
        self.backbone, self.base = backbone, backbone.denoiser.requires_grad_(False)
        self.network = copy.deepcopy(self.base).float().requires_grad_(True)
        self._teacher = copy.deepcopy(self.network).requires_grad_(False)
        self._prepared: nn.Module = self.network
        self.parameters = dict(self.network.named_parameters())
        self.teacher = dict(self._teacher.named_parameters())
        self._base = dict(self.base.named_parameters())
        self._base_norm = self._measure(self._base.values())
        backbone.denoiser = self.network

    @contextmanager
    def role(self, role: Role) -> Iterator[None]:
        roles = {"student": self._prepared, "teacher": self._teacher, "base": self.base}
        self.backbone.denoiser = roles[role]
        try:
            yield
        finally:
            self.backbone.denoiser = self._prepared

    def use(self, prepared: nn.Module) -> None:
        self._prepared = self.backbone.denoiser = prepared
        device = next(self.network.parameters()).device
        self._teacher.to(device)
        self.base.to(device)

    @torch.no_grad()
    def drift(self) -> float:
        return _norm(p - self._base[name].float() for name, p in self.parameters.items()) / self._base_norm

    def delta(self, keep: bool = True) -> dict[str, Tensor]:
        """student − base, in bf16, whole, in the host's memory."""

        def change(name: str, student: Tensor) -> Tensor:
            base = entire(self._base[name].detach()).to(student.device, torch.float32)
            return (student.float() - base).to(torch.bfloat16)

        return collect(self.parameters, keep, change)

    def negative(self) -> Negative:
        return self.delta()

    @contextmanager
    def saving(self) -> Iterator[Saver]:
        delta = self.delta(keep=is_main())

        def write(directory: Path) -> None:
            save_tensors(directory / "delta.safetensors", delta, {"format": "pt"})

        yield Saver(write=write, tensors=delta)

    def close(self) -> None:
        self.backbone.denoiser = self.base


def make_student(
    backbone: Backbone, recipe: Recipe, *, sharded: bool = True, offload: torch.device | None = None
) -> Student:
    """The weights to be trained, put into the backbone, with gradient checkpointing if and only if the recipe asks.

    sharded: as the recipe's engine wants them; else as one process has them, to be looked at.
    offload: the device to which layers of the base come when they are used; `None`: they stay where they are.
    """
    student: Student
    if recipe.train == "lora":
        student = LoraStudent(backbone, recipe, offload)
    else:
        from selfnpo_core.training.student_in_pieces import KINDS

        student = KINDS.get(recipe.engine if sharded else "", FullStudent)(backbone, recipe)
    if recipe.gradient_checkpointing:
        enable = getattr(student.network, "enable_gradient_checkpointing", None)
        if enable is None:
            raise InputError(f"{backbone.name} cannot use gradient_checkpointing: leave it out")
        enable()
    elif getattr(student.network, "is_gradient_checkpointing", False):  # left from another recipe
        student.network.disable_gradient_checkpointing()
    return student


def lora_target_modules(backbone: Backbone, targets: str | Sequence[str]) -> list[str] | str:
    """PEFT's `target_modules` for a name of the family's list, or for ends of layers' names, each of which must fit."""
    if not isinstance(targets, str):
        layers = [f".{name}" for name, _ in backbone.denoiser.named_modules()]
        strays = [end for end in targets if not any(layer.endswith(f".{end}") for layer in layers)]
        if strays or not targets:
            raise InputError(f"targets {list(strays)}: {backbone.family} has no layers whose names end so")
        return list(targets)
    if targets not in backbone.lora_targets:
        known = ", ".join(backbone.lora_targets)
        raise InputError(
            f"targets '{targets}' is unknown for {backbone.family}: use one of {known}, or a list of layers"
        )
    chosen = backbone.lora_targets[targets]
    return chosen if isinstance(chosen, str) else list(chosen)


def _teacher_of(name: str) -> str:
    return name.replace(f".{NPO}.", f".{TEACHER}.")


def _norm(tensors: Any) -> float:
    norms = [tensor.detach().float().norm() for tensor in tensors]
    return float(torch.stack(norms).double().norm())
