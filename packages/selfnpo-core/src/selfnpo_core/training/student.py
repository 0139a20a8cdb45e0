"""The three sets of weights of a run, and which of them the network uses right now.

    student   is trained       teacher   moving average of the student       base   what both began as

As a LoRA, student and teacher are two adapters, "npo" and "teacher", on one copy of the base, and changing from one
to another sets one attribute a layer. With full weights they are copies of the network, float32 whatever the base
is, and changing assigns one of them to `backbone.denoiser`. Outside a `role` block the student is in use.
Drift is ‖Δθ‖/‖θ‖ over the whole network; of a LoRA, Δ = s·B·A, ‖B·A‖² = Σ (BᵀB)∘(AAᵀ).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from selfnpo_core.ema import ema_update
from selfnpo_core.errors import RunError
from selfnpo_core.models.backbone import Backbone, NegativeWeights
from selfnpo_core.ranks import Ranks
from selfnpo_core.training.sharding import fill, pieces, release, walk
from selfnpo_core.training.streaming import Walk

Role = Literal["student", "teacher", "base"]


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
    def negative(self) -> NegativeWeights:
        """The student as `Backbone.draw_samples` wants it, inside `role("base")`."""

    @abstractmethod
    def saving(self, folder: Path, ranks: Ranks) -> AbstractContextManager["Saver"]:
        """What an npo folder is written with. To be entered by all processes together; one of them then writes.

        folder: on the same disk, for what is written aside.
        """

    @abstractmethod
    def close(self) -> None:
        """Leave the backbone as it was found."""

    @abstractmethod
    def use(self, prepared: nn.Module) -> None:
        """Train through this wrapper of `network` (Accelerate's) from now on."""

    @abstractmethod
    def place(self, device: torch.device, zero3: Mapping[str, Any] | None = None) -> None:
        """Bring what is trained to the training device, before it is prepared.

        zero3: DeepSpeed's settings, if it is to be cut by them on the way.
        """

    def before_close(self) -> None:  # noqa: B027
        """While the network is still prepared."""

    def update_teacher(self, decay: float) -> None:
        """On every rank, what it holds."""
        teacher, student = self._held()
        ema_update(teacher, student, decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, student and teacher have each other's numbers; on every rank, what it holds."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for one, other in zip(*self._held(), strict=True):
            kept = one.clone()
            one.copy_(other)
            other.copy_(kept)

    def _held(self) -> tuple[list[Tensor], list[Tensor]]:
        """The teacher's and the student's numbers on this rank; of what ZeRO-3 has gathered of either, its pieces."""
        release([*self.teacher.values(), *self.parameters.values()])
        return pieces(self.teacher.values()), pieces(self.parameters.values())

    def walks(self) -> dict[str, Walk]:
        """What a checkpoint holds of them, by part."""
        return {"student": walk(self.parameters), "teacher": walk(self.teacher)}

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
        return math.nan if any(tensor.is_meta for tensor in weights) else norm_of(weights)


def distance_squared(own: Iterable[Tensor], base: Iterable[Tensor]) -> Tensor:
    """‖own − base‖² over all tensors, on their device: a subtraction each, and one norm for each `GROUP`."""
    squares: list[Tensor] = []
    group: list[Tensor] = []
    held = 0
    for one, other in zip(own, base, strict=True):
        group.append(one.detach() - other.detach().to(one.device, torch.float32))
        held += one.numel()
        if held >= GROUP:
            squares.append(nn.utils.get_total_norm(group).double().square())
            group, held = [], 0
    if group:
        squares.append(nn.utils.get_total_norm(group).double().square())
    return torch.stack(squares).sum()


GROUP = 1 << 25
"""Numbers whose differences lie in memory together: 128 MiB."""


def norm_of(tensors: Any) -> float:
    norms = [tensor.detach().float().norm() for tensor in tensors]
    return float(torch.stack(norms).double().norm())
