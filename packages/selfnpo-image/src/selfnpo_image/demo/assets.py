"""The files that ship with the package: the demo model, its two judges, and the statistics of real pictures."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from selfnpo_core.errors import InputError
from selfnpo_core.evaluation import Moments
from selfnpo_image.demo.judges import Judge, Oracle

FOLDER = Path(str(files("selfnpo_image.demo") / "assets"))


def model_folder() -> Path:
    """The diffusers folder of the shipped model, the `demo` of `--model demo`."""
    folder = FOLDER / "model"
    if not (folder / "model_index.json").is_file():
        raise InputError("the demo model is missing from this installation: make it with tools/build_demo_models.py")
    return folder


@cache
def load_oracle() -> Oracle:
    oracle = Oracle()
    _fill(oracle, "oracle")
    return oracle


@cache
def load_judge() -> Judge:
    judge = Judge()
    _fill(judge, "judge")
    return judge


@cache
def reference_moments() -> Moments:
    """Mean and covariance of the oracle's features of real pictures."""
    stored = load_file(FOLDER / "reference.safetensors")
    return Moments(
        mean=stored["mean"].double(),
        covariance=stored["covariance"].double(),
        count=int(stored["count"].item()),
    )


def _fill(module: nn.Module, name: str) -> None:
    stored: dict[str, Tensor] = load_file(FOLDER / f"{name}.safetensors")
    own = module.state_dict()
    module.load_state_dict({key: value.to(own[key].dtype) for key, value in stored.items()})
    module.eval().requires_grad_(False)
