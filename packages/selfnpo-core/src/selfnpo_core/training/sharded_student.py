"""Full weights whose student, teacher and base lie in pieces over the processes, under FSDP2 and under ZeRO-3."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from selfnpo_core.errors import RunError
from selfnpo_core.system import private
from selfnpo_core.system.processes import total
from selfnpo_core.training.full_student import FullStudent
from selfnpo_core.training.sharding import collect, fill, pieces, release, split
from selfnpo_core.training.student import Role, distance_squared


class SplitStudent(FullStudent):
    """Full weights under FSDP2: student, teacher and base are three networks in pieces."""

    def place(self, device: torch.device) -> None:
        for network in (self.network, self._teacher, self.base):
            split(network, device)
        self.parameters = dict(self.network.named_parameters())
        self.teacher = dict(self._teacher.named_parameters())
        self._base = dict(self.base.named_parameters())

    def use(self, prepared: nn.Module) -> None:
        self._prepared = self.backbone.denoiser = prepared

    @torch.no_grad()
    def drift(self) -> float:
        squared = distance_squared(pieces(self.parameters.values()), pieces(self._base.values()))
        return float(total(squared).sqrt()) / self._base_norm


class ShardedStudent(FullStudent):
    """Full weights under ZeRO-3: the teacher and the base are pieces too, which take the student's place when asked.

    The network's parameters never stay whole between uses, so exchanging the pieces exchanges the weights. The base's
    own copy waits in the host's memory until the end.
    """

    def use(self, prepared: nn.Module) -> None:
        self._prepared = self.backbone.denoiser = prepared
        release(self.parameters.values())
        self._own = [private.piece_of(parameter).data for parameter in self.parameters.values()]
        self._pieces = {role: [piece.clone() for piece in self._own] for role in ("teacher", "base")}
        self.base.to("cpu")
        del self._teacher
        self.teacher = {}

    @contextmanager
    def role(self, role: Role) -> Iterator[None]:
        if role == "student":
            yield
            return
        self._exchange(self._pieces[role])
        try:
            yield
        finally:
            self._exchange(self._own)

    @torch.no_grad()
    def drift(self) -> float:
        return float(total(distance_squared(self._own, self._pieces["base"])).sqrt()) / self._base_norm

    def _held(self) -> tuple[list[Tensor], list[Tensor]]:
        release(self.parameters.values())
        return self._pieces["teacher"], self._own

    def collect(self, keep: bool) -> dict[str, dict[str, Tensor]]:
        student = collect(self.parameters, keep)
        with self.role("teacher"):
            return {"student": student, "teacher": collect(self.parameters, keep)}

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
