"""An update on shapes alone, to know what it will hold in memory before any weight is read.

torch's FakeTensorMode answers each operation with a tensor that has a shape and a type and no numbers. The update runs
under it: forward passes of the teacher and the student, the loss, the backward pass, with autocast and gradient
checkpointing where the recipe has them. Kernels are the CPU's, types are those of the device that the run will have.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from selfnpo_core.denoise import ddim_step
from selfnpo_core.models.backbone import Backbone
from selfnpo_core.prediction import Estimate
from selfnpo_core.system import private
from selfnpo_core.training.accelerators import AMP
from selfnpo_core.training.cuda_autocast import CudaAutocast
from selfnpo_core.training.recipe import Recipe
from selfnpo_core.training.rollouts import Look, make_teacher
from selfnpo_core.training.student import Student
from selfnpo_core.training.updates import Denoisers, Noised, RowCounter, update_loss


class HeldBytes(private.SeesOperations):
    """Counts the bytes of tensors made within it: `now`, and at the `peak`. Those of `known` count as nothing."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = {private.storage_key(tensor.untyped_storage()) for tensor in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in private.tensors_in(out):
            self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = private.storage_key(storage)
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, count: int) -> None:
        self._seen.discard(key)
        self.now -= count


@contextmanager
def replaced(networks: Iterable[nn.Module], make: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
    """Within the block other tensors, made from them, stand for these networks' weights and buffers."""
    before: list[tuple[MutableMapping[str, Any], str, Tensor]] = []
    others: dict[int, Tensor] = {}
    for module in {module for network in networks for module in network.modules()}:
        for table in private.weight_tables(module):
            before += [(table, name, tensor) for name, tensor in table.items() if tensor is not None]
    for table, name, tensor in before:
        if id(tensor) not in others:
            made = make(tensor.detach())
            is_weight = isinstance(tensor, nn.Parameter)
            others[id(tensor)] = nn.Parameter(made, requires_grad=tensor.requires_grad) if is_weight else made
        table[name] = others[id(tensor)]
    try:
        yield list(others.values())
    finally:
        for table, name, tensor in before:
            table[name] = tensor


def on_meta(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta")


def simulated_peak(backbone: Backbone, student: Student, recipe: Recipe, *, gradients: bool, on_gpu: bool) -> int:
    """The most bytes that one part of an update holds beyond weights and optimizer.

    gradients: whether those of the weights are among them; else each is gone as soon as it is made. on_gpu: whether
    autocast is CUDA's.
    """
    networks = _networks(backbone, student)
    denoisers = Denoisers(backbone=backbone, weights=student, counter=RowCounter(), amp=AMP[recipe.mixed_precision])
    rows, timesteps = recipe.batch_size, backbone.schedule.grid(recipe.grid_steps)[:2].tolist()
    backbone.schedule.at(torch.tensor(timesteps[:1]), like=torch.empty(1))  # it keeps its tables, which must be real
    with (
        private.fake_tensors(),
        replaced(networks, _empty) as weights,
        HeldBytes(weights) as held,
        CudaAutocast() if on_gpu else nullcontext(),
    ):
        if not gradients:
            for weight in weights:
                if weight.requires_grad:
                    weight.register_post_accumulate_grad_hook(_drop)
        x = torch.empty((rows, *backbone.latent_shape))
        s, t = (torch.full((rows,), at) for at in timesteps)
        prompt = torch.zeros(rows, dtype=torch.long)
        teacher = make_teacher(recipe, denoisers.teacher)
        with torch.no_grad():
            if recipe.pool_target == "endpoint":
                teacher.step(x, t, prompt)
            if recipe.rollout == "samples" or recipe.pool_target == "endpoint":
                look = Look(x_t=x, t=t, prompt=prompt, weak=Estimate(x, x), strong=None)
            else:
                look = teacher.look(x, t, prompt, advance=recipe.rollout == "pool")
        noised = Noised(look=look, x_s=torch.empty_like(x), s=s, prompt=prompt, noise=torch.empty_like(x))
        if recipe.chunk_frames is not None:
            noised = noised.window(0, recipe.chunk_frames)
        private.backward_within_modes(update_loss(noised, denoisers, recipe))
        return held.peak


def simulated_step(backbone: Backbone, student: Student, recipe: Recipe, *, on_gpu: bool) -> int:
    """The most bytes that the teacher's step of a batch of a pool holds, its samples included."""
    denoisers = Denoisers(backbone=backbone, weights=student, counter=RowCounter(), amp=AMP[recipe.mixed_precision])
    teacher = make_teacher(recipe, denoisers.teacher)

    def work(x: Tensor, t: Tensor, prompt: Tensor) -> object:
        level = backbone.schedule.at(t, like=x)
        return ddim_step(teacher.step(x, t, prompt), level)

    return _forward_peak(backbone, _networks(backbone, student), recipe, recipe.batch_size, work, on_gpu=on_gpu)


def simulated_draw(
    backbone: Backbone, student: Student, recipe: Recipe, rows: int, *, on_gpu: bool, adapters: bool = True
) -> int:
    """The most bytes that a forward of the base holds, in which samples are drawn. adapters: a LoRA's are in use."""
    amp = AMP[recipe.mixed_precision]
    with student.role("student" if adapters and recipe.train == "lora" else "base"):

        def work(x: Tensor, t: Tensor, prompt: Tensor) -> object:
            with torch.autocast("cpu", dtype=amp, enabled=amp is not None):
                return backbone.predict(x, t, prompt)

        return _forward_peak(backbone, [backbone.denoiser], recipe, rows, work, on_gpu=on_gpu)


def held_by(networks: Sequence[nn.Module], work: Callable[[], object]) -> int:
    """The most bytes that a calculation of these networks, on the meta device or not, holds beside their weights."""
    with private.fake_tensors(), replaced(networks, _empty) as weights, HeldBytes(weights) as held, torch.no_grad():
        work()
    return held.peak


def _forward_peak(
    backbone: Backbone,
    networks: Sequence[nn.Module],
    recipe: Recipe,
    rows: int,
    work: Callable[[Tensor, Tensor, Tensor], object],
    *,
    on_gpu: bool,
) -> int:
    at = float(backbone.schedule.grid(recipe.grid_steps)[0])
    backbone.schedule.at(torch.tensor([at]), like=torch.empty(1))  # it keeps its tables, which must be real
    with CudaAutocast() if on_gpu else nullcontext():
        return held_by(
            networks,
            lambda: work(
                torch.empty((rows, *backbone.latent_shape)),
                torch.full((rows,), at),
                torch.zeros(rows, dtype=torch.long),
            ),
        )


def _networks(backbone: Backbone, student: Student) -> list[nn.Module]:
    """Under each of its sets of weights."""
    networks = []
    for role in ("student", "teacher", "base"):
        with student.role(role):
            networks.append(backbone.denoiser)
    return networks


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="cpu")


def _drop(weight: Tensor) -> None:
    weight.grad = None
