"""A LoRA in training: student and teacher are two adapters on one copy of the base."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from selfnpo_core.errors import InputError
from selfnpo_core.models.backbone import Backbone, NegativeWeights
from selfnpo_core.models.storage import give_back, place_rest, store_base
from selfnpo_core.ranks import Ranks
from selfnpo_core.system import private
from selfnpo_core.training.recipe import Recipe
from selfnpo_core.training.sharding import Cutter, split, whole
from selfnpo_core.training.student import Role, Saver, Student

NPO, TEACHER = "npo", "teacher"


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

    def place(self, device: torch.device, zero3: Mapping[str, Any] | None = None) -> None:
        """Adapters stay whole and on the device, whatever becomes of the base."""
        if self._offloaded:
            place_rest(self.network, device)
        elif zero3 is not None:
            cut = Cutter(zero3)
            for parameter in self.network.parameters():
                cut(parameter)
            for buffer in self.network.buffers():
                buffer.data = buffer.data.to(device)
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
        """Layers of one shape are taken together."""
        alike: dict[tuple[Any, ...], list[tuple[Tensor, Tensor]]] = {}
        with whole(self.parameters.values()):
            for layer in self._layers:
                a = layer.lora_A[NPO].weight.flatten(1)  # (r, in·k·k)
                b = layer.lora_B[NPO].weight.flatten(1)  # (out, r)
                alike.setdefault((a.shape, b.shape, layer.scaling[NPO]), []).append((a, b))
            squares = []
            for (_, _, scaling), layers in alike.items():
                a, b = (torch.stack(weights) for weights in zip(*layers, strict=True))
                squares.append(scaling**2 * ((b.mT @ b) * (a @ a.mT)).sum())
        return float(torch.stack(squares).double().sum().clamp(min=0).sqrt()) / self._base_norm

    def negative(self) -> NegativeWeights:
        return NPO

    @contextmanager
    def saving(self, folder: Path, ranks: Ranks) -> Iterator[Saver]:
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
            private.set_active_adapter(layer, adapters)


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
