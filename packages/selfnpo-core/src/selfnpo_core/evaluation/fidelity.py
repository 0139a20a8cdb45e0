"""torch-fidelity's InceptionV3, whose features FID, KID, precision and recall are commonly of (its layer "2048").

Pictures of any size are resized to 299×299 by it, bilinearly as TensorFlow 1 did, and put into [−1, 1].
"""

import importlib
import sys
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from selfnpo_core.errors import InputError
from selfnpo_core.evaluation.weights import pick, read_weights
from selfnpo_core.system.files import file_sha256

PACKAGE = "torch_fidelity"
STEM = "weights-inception-2015-12-05-6726825d"
WEIGHTS = f"{STEM}.pth|{STEM}.safetensors"
"""The end of the stem is how the sha256 of the published file, the .pth, begins."""
SOURCE = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/" + f"{STEM}.pth into WEIGHTS/torch-fidelity/"
)


def require() -> None:
    if find_spec(PACKAGE) is None:
        raise InputError("Inception's features need torch-fidelity: pip install 'selfnpo-core[eval]'")


def inception(place: Path, device: torch.device) -> Any:
    """The network with its weights: pictures (B, 3, H, W) uint8 → a tuple of one, features (B, 2048) float32."""
    file = pick(place, WEIGHTS)
    assert file is not None
    if file.suffix == ".pth" and not file_sha256(file).startswith(STEM[-8:]):
        raise InputError(f"{file} is not torch-fidelity's file (its sha256 begins with {STEM[-8:]}): get it again")
    checked = BytesIO()  # the constructor unpickles whatever it is given: it gets what was read safely
    torch.save(read_weights(file), checked)
    checked.seek(0)
    made = _module("feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    try:
        network = made("inception-v3-compat", ["2048"], feature_extractor_weights_path=checked)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:120]
        raise InputError(f"{file} does not fit torch-fidelity's InceptionV3 ({detail}): get it again") from None
    return network.to(device)


def _module(name: str) -> ModuleType:
    """One of torch-fidelity's modules, without its `__init__`.

    That one imports torchvision, which this network does not need and which has to fit torch's build exactly.
    """
    if PACKAGE in sys.modules:
        return importlib.import_module(f"{PACKAGE}.{name}")
    spec = find_spec(PACKAGE)
    assert spec is not None
    bare = ModuleType(PACKAGE)
    bare.__path__ = list(spec.submodule_search_locations or ())
    sys.modules[PACKAGE] = bare
    try:
        return importlib.import_module(f"{PACKAGE}.{name}")
    finally:  # whoever imports the package later gets all of it
        for module in [m for m in sys.modules if m == PACKAGE or m.startswith(f"{PACKAGE}.")]:
            del sys.modules[module]
