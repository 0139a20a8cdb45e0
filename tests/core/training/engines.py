"""Engines of the toy family, opened and closed, and what tests ask of them."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tests.core.training.toy import PROMPTS, ToyBackbone, toy_recipe

from selfnpo_core.training import Recipe
from selfnpo_core.training.accelerators import make_accelerator
from selfnpo_core.training.engine import Engine
from selfnpo_core.training.updates import Noised, noised_looks, update_loss


@contextmanager
def engine(backbone: ToyBackbone | None = None, **changes) -> Iterator[Engine]:
    recipe: Recipe = toy_recipe(**changes)
    backbone = backbone or ToyBackbone()
    backbone.embed(PROMPTS)
    made = Engine(backbone, recipe, len(PROMPTS), make_accelerator(recipe))
    made.warm_up()
    try:
        yield made
    finally:
        made.close()


class Spy(ToyBackbone):
    """Notes (with gradient?, prompts) of every forward, by a hook on whichever network is in use."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen: list[tuple[bool, list[int]]] = []

    def predict(self, x_t, t, prompt):
        def note(module, args):
            assert len(args[0]) == len(prompt)
            self.seen.append((torch.is_grad_enabled(), prompt.tolist()))

        handle = self.denoiser.register_forward_pre_hook(note)
        try:
            return super().predict(x_t, t, prompt)
        finally:
            handle.remove()

    def rows(self, with_gradient: bool) -> int:
        return sum(len(prompt) for gradient, prompt in self.seen if gradient is with_gradient)


def fixed_loss(made: Engine, pool: dict, weights: str) -> float:
    """The objective on rows that are always the same, for the student or, in its place, the base."""
    made.source.load_state_dict(pool)
    made.generator.manual_seed(99)
    role = getattr(made.denoisers, weights)
    denoisers = copy.copy(made.denoisers)
    object.__setattr__(denoisers, "student", role)
    losses = [
        float(update_loss(noised, denoisers, made.recipe).detach())
        for noised in noised_looks(made.source, made.backbone, made.recipe, made.generator)
    ]
    made.source.put_back()
    return sum(losses) / len(losses)


def fixed_parts(made: Engine) -> list[Noised]:
    made.generator.manual_seed(5)
    parts = list(noised_looks(made.source, made.backbone, made.recipe, made.generator))
    made.source.put_back()
    return parts
