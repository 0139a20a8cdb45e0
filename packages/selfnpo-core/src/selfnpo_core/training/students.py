"""Which student a recipe wants."""

from typing import Any

import torch

from selfnpo_core.errors import InputError
from selfnpo_core.models.backbone import Backbone
from selfnpo_core.training.full_student import FullStudent
from selfnpo_core.training.lora_student import LoraStudent
from selfnpo_core.training.recipe import Recipe
from selfnpo_core.training.sharded_student import KINDS
from selfnpo_core.training.student import Student


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
        student = KINDS.get(recipe.engine if sharded else "", FullStudent)(backbone, recipe)
    network: Any = student.network
    if recipe.gradient_checkpointing:
        enable = getattr(network, "enable_gradient_checkpointing", None)
        if enable is None:
            raise InputError(f"{backbone.name} cannot use gradient_checkpointing: leave it out")
        enable()
    elif getattr(network, "is_gradient_checkpointing", False):  # left from another recipe
        network.disable_gradient_checkpointing()
    return student
