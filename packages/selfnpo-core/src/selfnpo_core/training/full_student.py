"""All weights in training: student and teacher are float32 copies of the network, made where they are to lie.

The base stays in the host's memory, in 16 bits where that loses nothing, as of checkpoints that are stored so. It is
read there a tensor at a time; where it answers itself it comes to the device in float32 for that long. Student and
teacher are made from it a parameter at a time, so nothing is held twice on the way.
"""

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfnpo_core.errors import RunError
from selfnpo_core.models.backbone import Backbone, NegativeWeights
from selfnpo_core.models.storage import narrowest, resident
from selfnpo_core.ranks import Ranks
from selfnpo_core.system import private
from selfnpo_core.system.files import file_sha256, load_tensors
from selfnpo_core.training.recipe import Recipe
from selfnpo_core.training.sharding import walk
from selfnpo_core.training.streaming import Walk, write_whole
from selfnpo_core.training.student import Role, Saver, Student, distance_squared

Use = Callable[[nn.Parameter], None]


class FullStudent(Student):
    """Copies of the whole network; the backbone's own stays the frozen base. `place` gives them their numbers."""

    def __init__(self, backbone: Backbone, recipe: Recipe):
        self.backbone, self.base = backbone, backbone.denoiser.requires_grad_(False)
        self.network, self._teacher = outline(self.base, trained=True), outline(self.base, trained=False)
        self._prepared: nn.Module = self.network
        self._base = dict(self.base.named_parameters())
        self._types = {name: tensor.dtype for name, tensor in self._base.items()}
        self._base_norm = self._measure(self._base.values())
        self._asked_for_base = recipe.objective == "dpo"  # at every update
        if self._asked_for_base and any(tensor.is_meta for tensor in self._base.values()):
            self.base.float()  # as it will answer; else it becomes so where it is placed
        self._device: torch.device | None = None
        self._base_is_shown = False
        self._name_parameters()
        backbone.denoiser = self.network

    def _name_parameters(self) -> None:
        self.parameters = dict(self.network.named_parameters())
        self.teacher = dict(self._teacher.named_parameters())

    def place(self, device: torch.device, zero3: Mapping[str, Any] | None = None) -> None:
        self._device = device
        give_numbers([self.network, self._teacher], self.base, device)
        self._name_parameters()
        if self._asked_for_base:
            self.base.to(device, torch.float32)
        else:
            keep_narrow(self._base.values())

    @contextmanager
    def role(self, role: Role) -> Iterator[None]:
        with self._base_at_hand(role):
            roles = {"student": self._prepared, "teacher": self._teacher, "base": self.base}
            before, self.backbone.denoiser = self.backbone.denoiser, roles[role]
            try:
                yield
            finally:
                self.backbone.denoiser = before

    @contextmanager
    def _base_at_hand(self, role: Role) -> Iterator[None]:
        """Within, the base can answer, if that is asked for; not again within itself."""
        if role != "base" or self._base_is_shown or self._device is None:
            yield
            return
        self._base_is_shown = True
        try:
            with self._shown_base(self._device):
                yield
        finally:
            self._base_is_shown = False

    @contextmanager
    def _shown_base(self, device: torch.device) -> Iterator[None]:
        with resident(self.base, device, torch.float32):
            yield

    def use(self, prepared: nn.Module) -> None:
        self._prepared = self.backbone.denoiser = prepared

    @torch.no_grad()
    def drift(self) -> float:
        base = (self._base[name] for name in self.parameters)
        return float(distance_squared(self.parameters.values(), base).sqrt()) / self._base_norm

    def delta(self) -> Walk:
        """student − base, in bf16."""

        def change(name: str, student: Tensor) -> Tensor:
            return (student.float() - self._base[name].detach().to(student.device, torch.float32)).to(torch.bfloat16)

        return walk(self.parameters, change, torch.bfloat16)

    def negative(self) -> NegativeWeights:
        return dict(self.delta())

    @contextmanager
    def saving(self, folder: Path, ranks: Ranks) -> Iterator[Saver]:
        """The weights file is written aside, a parameter at a time, and then put into its place."""
        file = folder / ".delta.safetensors.partial"
        sha256 = write_whole(file, self.delta(), ranks, {"format": "pt"})

        def write(directory: Path) -> None:
            os.replace(file, made := directory / "delta.safetensors")
            if file_sha256(made) != sha256:
                raise RunError(f"{made} does not read back as it was written: look for a fault of the disk")

        try:
            yield Saver(write=write, tensors=load_tensors(file) if ranks.index == 0 else {})
        finally:
            if ranks.index == 0:
                file.unlink(missing_ok=True)

    def close(self) -> None:
        self.network, self._teacher = nn.Module(), nn.Module()  # gone before the base is as wide as it was
        self.parameters, self.teacher = {}, {}
        for name, tensor in self._base.items():
            tensor.data = tensor.data.to(self._types[name])
        self.backbone.denoiser = self.base


def outline(network: nn.Module, *, trained: bool) -> nn.Module:
    """A copy in float32 without numbers, on the meta device."""
    stand_ins: dict[int, Any] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        empty = torch.empty_like(tensor, device="meta", dtype=_float32(tensor))
        is_weight = isinstance(tensor, nn.Parameter)
        stand_ins[id(tensor)] = nn.Parameter(empty, requires_grad=trained) if is_weight else empty
    return copy.deepcopy(network, stand_ins)


@torch.no_grad()
def give_numbers(
    outlines: Iterable[nn.Module], base: nn.Module, device: torch.device, use: Use = lambda parameter: None
) -> None:
    """The base's numbers for its outlines, in float32 on the device, a parameter at a time.

    use: called for each parameter before the next one is made.
    """
    for network in outlines:
        made: dict[int, Tensor] = {}
        for own, theirs in zip(network.modules(), base.modules(), strict=True):
            for table, source in zip(private.weight_tables(own), private.weight_tables(theirs), strict=True):
                for name, tensor in source.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in made:
                        made[id(tensor)] = _placed(tensor, table[name], device)
                        if isinstance(parameter := made[id(tensor)], nn.Parameter):
                            use(parameter)
                    table[name] = made[id(tensor)]


def _placed(tensor: Tensor, outlined: Tensor, device: torch.device) -> Tensor:
    numbers = tensor.detach().to(device, _float32(tensor), copy=True)
    is_weight = isinstance(tensor, nn.Parameter)
    return nn.Parameter(numbers, requires_grad=outlined.requires_grad) if is_weight else numbers


def keep_narrow(tensors: Iterable[Tensor]) -> None:
    """Each in 16 bits in the host's memory, where that loses nothing."""
    for tensor in tensors:
        tensor.data = narrowest(tensor.data)


def _float32(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.is_floating_point() else tensor.dtype
