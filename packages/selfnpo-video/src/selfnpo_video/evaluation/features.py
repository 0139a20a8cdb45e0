"""Features of clips for a Fréchet video distance (FVD, 1812.01717) by a transformers video model in place of I3D.

The published I3D is a TorchScript file, which is code; FVD by VideoMAE follows motion better (2404.12391). Distances by
different networks cannot be compared with each other.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfnpo_core.errors import InputError
from selfnpo_core.evaluation.clip import CONFIG, PIXELS, readable, whole
from selfnpo_core.evaluation.networks import Look, Network
from selfnpo_core.evaluation.weights import Wanted, library
from selfnpo_core.sampling.medium import Frames
from selfnpo_core.system.files import file_sha256, read_json
from selfnpo_core.system.paths import user_path

NAMED = {"videomae": "MCG-NJU/videomae-base-finetuned-kinetics"}
WEIGHTS = "model.safetensors"
_KINDS = {"videomae": "VideoMAEModel", "timesformer": "TimesformerModel"}


def feature_network(name: str) -> Network:
    """name: of `NAMED`, a hub id, or a folder of a model. The features are the mean of its last hidden tokens."""
    folder = user_path(name)
    if folder.is_file():
        raise InputError(f"--feature-network {name} is a file, and may be code: give a folder of a transformers model")
    repo, place = NAMED.get(name, name), None
    wanted: tuple[Wanted, ...] = ()
    sha256: dict[str, str] = {}
    if folder.is_dir():
        _kind(folder)
        if not (folder / WEIGHTS).is_file():
            raise InputError(f"--feature-network {name} has no {WEIGHTS}: give a folder of a transformers model")
        place, sha256 = folder, {WEIGHTS: file_sha256(folder / WEIGHTS)}
    elif repo.count("/") == 1:
        wanted = (Wanted(repo=repo, files=(CONFIG, WEIGHTS, PIXELS)),)
    else:
        raise InputError(f"--feature-network {name}: use oracle, {', '.join(NAMED)}, a folder or a hub id owner/name")

    def load(places: Sequence[Path], device: torch.device) -> Look:
        return _load(place or places[0], device)

    return Network(
        name=f"features-{folder.name if place else repo.split('/')[-1]}",
        model=repo,
        preprocessing="as many frames as the model takes, evenly spaced; shorter side and centre crop of its config "
        "(PIL); mean of the last hidden tokens",
        library=library("transformers"),
        wanted=wanted,
        load=load,
        batch=4,
        sha256=sha256,
    )


def _load(place: Path, device: torch.device) -> Look:
    import transformers

    model = whole(getattr(transformers, _kind(place)), place).eval().requires_grad_(False).to(device)
    with readable(place):
        prepare = transformers.VideoMAEImageProcessorPil.from_pretrained(place)
    count = model.config.num_frames

    def look(samples: Sequence[Frames], prompts: Sequence[str]) -> Tensor:
        chosen = [list(frames[spaced(len(frames), count)]) for frames in samples]
        pixels = prepare(chosen, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
        return model(pixel_values=pixels.to(device)).last_hidden_state.mean(dim=1)

    return look


def spaced(frames: int, count: int) -> np.ndarray[Any, Any]:
    """`count` indices from the first frame to the last; of a shorter clip some come twice."""
    return np.linspace(0, frames - 1, count).round().astype(int)


def _kind(place: Path) -> str:
    """The class of the model in a folder."""
    try:
        kind = read_json(place / CONFIG).get("model_type")
    except (OSError, ValueError, AttributeError):
        raise InputError(f"--feature-network {place} has no {CONFIG} that can be read: give a model's folder") from None
    if kind not in _KINDS:
        raise InputError(f"--feature-network {place} is a model of type {kind}: use one of {', '.join(_KINDS)}")
    return _KINDS[kind]
