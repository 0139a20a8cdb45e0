"""The files that ship with the package: the video demo's model and its oracle."""

from functools import cache
from importlib.resources import files
from pathlib import Path

from safetensors.torch import load_file

from selfnpo_core.errors import InputError
from selfnpo_core.evaluation import Moments
from selfnpo_video.demo.judges import VideoOracle

FOLDER = Path(str(files("selfnpo_video.demo") / "assets"))


def model_folder() -> Path:
    """The diffusers folder of the shipped model, the `demo` of `--model demo`."""
    folder = FOLDER / "model"
    if not (folder / "model_index.json").is_file():
        raise InputError("the demo model is missing from this installation: make it with tools/build_demo_models.py")
    return folder


@cache
def load_oracle() -> VideoOracle:
    oracle = VideoOracle()
    stored, own = load_file(FOLDER / "oracle.safetensors"), oracle.state_dict()
    oracle.load_state_dict({key: value.to(own[key].dtype) for key, value in stored.items()})
    return oracle.eval().requires_grad_(False)


@cache
def reference_moments() -> Moments:
    """Mean and covariance of the oracle's features of real clips."""
    stored = load_file(FOLDER / "reference.safetensors")
    return Moments(
        mean=stored["mean"].double(), covariance=stored["covariance"].double(), count=int(stored["count"].item())
    )
