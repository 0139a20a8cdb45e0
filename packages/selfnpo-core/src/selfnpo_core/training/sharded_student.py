"""Full weights whose student and teacher lie in pieces over the processes, under FSDP2 and under ZeRO-3.

Both are cut while they are made, so that no more than one parameter, or under FSDP2 one that is given its numbers, is
whole on a device. The base waits in the host's memory; pieces of it are made when they are asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from selfnpo_core.errors import RunError
from selfnpo_core.models.backbone import Backbone
from selfnpo_core.system import private
from selfnpo_core.system.processes import total
from selfnpo_core.training.full_student import FullStudent, give_numbers, keep_narrow, outline
from selfnpo_core.training.recipe import Recipe
from selfnpo_core.training.sharding import Cutter, fill, like, own_part, pieces, release, split, walk
from selfnpo_core.training.streaming import Walk
from selfnpo_core.training.student import Role, distance_squared


class SplitStudent(FullStudent):
    """Full weights under FSDP2: student and teacher are two networks in pieces, and the base, where asked, a third."""

    def __init__(self, backbone: Backbone, recipe: Recipe):
        super().__init__(backbone, recipe)
        self._third: nn.Module | None = None

    def place(self, device: torch.device, zero3: Mapping[str, Any] | None = None) -> None:
        self._device = device
        keep_narrow(self._base.values())
        for network in (self.network, self._teacher):
            self._split(network, device)
        self._name_parameters()

    def _split(self, network: nn.Module, device: torch.device) -> None:
        """Cut an outline and give its pieces their numbers."""
        split(network, device)
        network.to_empty(device=device)
        fill(dict(network.named_parameters()), self._base)
        for own, theirs in zip(network.buffers(), self.base.buffers(), strict=True):
            own.copy_(theirs)

    @contextmanager
    def role(self, role: Role) -> Iterator[None]:
        with super().role(role):
            if role == "base" and self._third is not None:
                self.backbone.denoiser = self._third
            yield

    @contextmanager
    def _shown_base(self, device: torch.device) -> Iterator[None]:
        if self._third is None:
            self._third = outline(self.base, trained=False).eval()
            self._split(self._third, device)
        try:
            yield
        finally:
            if not self._asked_for_base:
                self._third = None

    @torch.no_grad()
    def drift(self) -> float:
        own = pieces(self.parameters.values())
        base = (pieces([like(self._base[name].detach(), tensor)])[0] for name, tensor in self.parameters.items())
        return float(total(distance_squared(own, base)).sqrt()) / self._base_norm

    def close(self) -> None:
        self._third = None
        super().close()


class ShardedStudent(FullStudent):
    """Full weights under ZeRO-3: teacher and base are pieces too, which take the student's place when asked.

    The network's parameters never stay whole between uses, so exchanging the pieces exchanges the weights.
    """

    def place(self, device: torch.device, zero3: Mapping[str, Any] | None = None) -> None:
        assert zero3 is not None
        self._device = device
        keep_narrow(self._base.values())
        give_numbers([self.network], self.base, device, Cutter(zero3))
        self.parameters = dict(self.network.named_parameters())
        self._teacher, self.teacher = nn.Module(), {}

    def use(self, prepared: nn.Module) -> None:
        self._prepared = self.backbone.denoiser = prepared
        release(self.parameters.values())
        self._own = [private.piece_of(parameter).data for parameter in self.parameters.values()]
        self._pieces: dict[Role, list[Tensor]] = {"teacher": [piece.clone() for piece in self._own]}

    @contextmanager
    def role(self, role: Role) -> Iterator[None]:
        if role == "student" or self._base_is_shown:
            yield
            return
        self._exchange(self._pieces_of_base() if role == "base" else self._pieces[role])
        self._base_is_shown = role == "base"
        try:
            yield
        finally:
            self._base_is_shown = False
            self._exchange(self._own)

    def _pieces_of_base(self) -> list[Tensor]:
        """In float32, kept if they are asked for at every update."""
        if "base" in self._pieces:
            return self._pieces["base"]
        made = [piece.clone() for piece in self._own]
        for piece, name in zip(made, self.parameters, strict=True):
            own = own_part(self._base[name].detach(), piece.numel())
            piece[: own.numel()].copy_(own)
        if self._asked_for_base:
            self._pieces["base"] = made
        return made

    @torch.no_grad()
    def drift(self) -> float:
        base = [self._base[name].detach() for name in self.parameters]
        theirs = [own_part(whole, piece.numel()) for piece, whole in zip(self._own, base, strict=True)]
        ours = [piece[: part.numel()] for piece, part in zip(self._own, theirs, strict=True)]
        own = distance_squared(ours, theirs).to(self._device)  # from the host's memory, if the pieces are there
        return float(total(own).sqrt()) / self._base_norm

    def _held(self) -> tuple[list[Tensor], list[Tensor]]:
        release(self.parameters.values())
        return self._pieces["teacher"], self._own

    def walks(self) -> dict[str, Walk]:
        student = walk(self.parameters)

        def of_teacher(names: Sequence[str]) -> Iterator[Tensor]:
            with self.role("teacher"):
                yield from student.one_by_one(names)

        return {"student": student, "teacher": Walk(outlines=student.outlines, one_by_one=of_teacher)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        for part in ("teacher", "student"):
            if state[part].keys() != self.parameters.keys():
                raise RunError(f"the checkpoint's {part} has other layers than the model: resume with its base")
            fill(self.parameters, state[part])
            release(self.parameters.values())
            if part == "teacher":
                for piece, own in zip(self._pieces["teacher"], self._own, strict=True):
                    piece.copy_(own)

    def before_close(self) -> None:
        """The pieces leave with the network."""
        self._own, self._pieces = [], {}

    def _exchange(self, shown: Sequence[Tensor]) -> None:
        release(self.parameters.values())
        for parameter, piece in zip(self.parameters.values(), shown, strict=True):
            private.piece_of(parameter).data = piece


KINDS: Mapping[str, type[FullStudent]] = {"zero3": ShardedStudent, "fsdp2": SplitStudent}
"""By engine."""
