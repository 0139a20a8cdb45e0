"""Where the demo model, its judges and its tuned relative lie in the package."""

from importlib.resources import files
from pathlib import Path

from selfnpo_core.worlds import assets

FOLDER = Path(str(files("selfnpo_image") / "demo" / "assets"))


def model_folder() -> Path:
    """The diffusers folder of the shipped model, the `demo` of `--model demo`."""
    return assets.model_folder(FOLDER)


PREFERRED = FOLDER / "preferred" / "pytorch_lora_weights.safetensors"
"""A LoRA by Diffusion-DPO, the oracle being the judge: `--preference demo-preferred`."""
