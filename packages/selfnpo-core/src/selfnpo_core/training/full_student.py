"""All weights in training: student and teacher are float32 copies of the network."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from selfnpo_core.models.backbone import Backbone, NegativeWeights
from selfnpo_core.system.files import save_tensors
from selfnpo_core.system.processes import is_main
from selfnpo_core.training.recipe import Recipe
from selfnpo_core.training.sharding import collect, entire
from selfnpo_core.training.student import Role, Saver, Student, distance_squared


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
        base = (self._base[name] for name in self.parameters)
        return float(distance_squared(self.parameters.values(), base).sqrt()) / self._base_norm

    def delta(self, keep: bool = True) -> dict[str, Tensor]:
        """student − base, in bf16, whole, in the host's memory."""

        def change(name: str, student: Tensor) -> Tensor:
            base = entire(self._base[name].detach()).to(student.device, torch.float32)
            return (student.float() - base).to(torch.bfloat16)

        return collect(self.parameters, keep, change)

    def negative(self) -> NegativeWeights:
        return self.delta()

    @contextmanager
    def saving(self) -> Iterator[Saver]:
        delta = self.delta(keep=is_main())

        def write(directory: Path) -> None:
            save_tensors(directory / "delta.safetensors", delta, {"format": "pt"})

        yield Saver(write=write, tensors=delta)

    def close(self) -> None:
        self.backbone.denoiser = self.base
