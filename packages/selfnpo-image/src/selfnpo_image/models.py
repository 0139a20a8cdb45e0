"""Known base models, and what a name given to `--model` stands for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfnpo_core.errors import InputError
from selfnpo_core.models import sources
from selfnpo_core.models.base import Base
from selfnpo_core.models.sources import KnownModel, Source

NOT_TAKEN: Mapping[str, tuple[str, str]] = {
    "flux.1-dev": ("black-forest-labs/FLUX.1-dev", "guidance-distilled"),
    "flux.1-schnell": ("black-forest-labs/FLUX.1-schnell", "step-distilled"),
    "flux.2-dev": ("black-forest-labs/FLUX.2-dev", "guidance-distilled"),
    "lcm-dreamshaper": ("SimianLuo/LCM_Dreamshaper_v7", "a latent consistency model"),
}
"""Models that run no negative branch and are of no family here: name → hub id, and what they are."""
ONE_BRANCH = (
    "distilled to run without a negative branch, where negative weights have nothing to act on; Neon (θ − w·δ) is what "
    "there is, and its δ is not trained here"
)

_SD15: dict[str, Any] = {"family": "sd15", "parameters": 859_520_964, "prediction_type": "epsilon", "dtype": "fp16"}
_SDXL: dict[str, Any] = {"family": "sdxl", "parameters": 2_567_463_684, "prediction_type": "epsilon", "dtype": "fp16"}
_FLOW: dict[str, Any] = {"prediction_type": "flow", "dtype": "bf16"}
_SD3: dict[str, Any] = {**_FLOW, "family": "sd3"}
_QWEN: dict[str, Any] = {**_FLOW, "family": "qwen-image", "parameters": 20_430_401_088, "licence": "Apache-2.0"}
_KLEIN: dict[str, Any] = {**_FLOW, "family": "flux2-klein"}
_ONE_BRANCH: dict[str, Any] = {"guidance_scale": 1.0, "distilled": True}

KNOWN = {
    model.name: model
    for model in (
        KnownModel(
            name="demo",
            hub_id=None,
            about="ships with the package: 64×64 pictures of things",
            licence="Apache-2.0",
            **{**_SD15, "parameters": 2_800_000, "dtype": "fp32"},
            guidance_scale=3.0,
        ),
        KnownModel(
            name="sd15",
            hub_id="stable-diffusion-v1-5/stable-diffusion-v1-5",
            about="Stable Diffusion 1.5",
            licence="CreativeML Open RAIL-M",
            **_SD15,
        ),
        KnownModel(
            name="dreamshaper",
            hub_id="Lykon/dreamshaper-8",
            about="DreamShaper 8, a preference-tuned SD1.5",
            licence="CreativeML Open RAIL-M",
            **_SD15,
        ),
        KnownModel(
            name="sdxl",
            hub_id="stabilityai/stable-diffusion-xl-base-1.0",
            about="Stable Diffusion XL 1.0, the base model",
            licence="CreativeML Open RAIL++-M",
            **_SDXL,
            guidance_scale=5.0,
        ),
        KnownModel(
            name="juggernaut-xl",
            hub_id="RunDiffusion/Juggernaut-XL-v9",
            about="Juggernaut XL 9, a preference-tuned SDXL",
            licence="CreativeML Open RAIL-M",
            **_SDXL,
            guidance_scale=5.0,
        ),
        KnownModel(
            name="dreamshaper-xl",
            hub_id="Lykon/dreamshaper-xl-1-0",
            about="DreamShaper XL 1.0, a preference-tuned SDXL",
            licence="CreativeML Open RAIL++-M",
            **_SDXL,
            guidance_scale=5.0,
        ),
        KnownModel(
            name="sd3.5-medium",
            hub_id="stabilityai/stable-diffusion-3.5-medium",
            about="Stable Diffusion 3.5 Medium",
            licence="Stability AI Community",
            **{**_SD3, "parameters": 2_243_171_520},
            steps=28,
            guidance_scale=4.5,
        ),
        KnownModel(
            name="sd3.5-large",
            hub_id="stabilityai/stable-diffusion-3.5-large",
            about="Stable Diffusion 3.5 Large",
            licence="Stability AI Community",
            **{**_SD3, "parameters": 8_056_627_520},
            steps=28,
            guidance_scale=3.5,
        ),
        # Steps and scales of those below are what their authors' cards on the hub call them with. Z-Image's card has
        # 4, in its pipeline's own scale, w = g − 1.
        KnownModel(
            name="qwen-image",
            hub_id="Qwen/Qwen-Image",
            about="Qwen-Image",
            **_QWEN,
            steps=50,
            guidance_scale=4.0,
        ),
        KnownModel(
            name="qwen-image-2512",
            hub_id="Qwen/Qwen-Image-2512",
            about="Qwen-Image of December 2025",
            **_QWEN,
            steps=50,
            guidance_scale=4.0,
        ),
        KnownModel(
            name="z-image",
            hub_id="Tongyi-MAI/Z-Image",
            about="Z-Image, the base model",
            licence="Apache-2.0",
            **_FLOW,
            family="z-image",
            parameters=6_154_908_736,
            steps=50,
            guidance_scale=5.0,
        ),
        KnownModel(
            name="flux2-klein-base-4b",
            hub_id="black-forest-labs/FLUX.2-klein-base-4B",
            about="FLUX.2 [klein] 4B, the base model",
            licence="Apache-2.0",
            **_KLEIN,
            parameters=3_875_544_576,
            steps=50,
            guidance_scale=4.0,
        ),
        KnownModel(
            name="flux2-klein-base-9b",
            hub_id="black-forest-labs/FLUX.2-klein-base-9B",
            about="FLUX.2 [klein] 9B, the base model",
            licence="FLUX Non-Commercial",
            **_KLEIN,
            parameters=9_078_581_248,
            steps=50,
            guidance_scale=4.0,
        ),
        # Distilled: a scale of 1 is none, and their steps are their cards'.
        KnownModel(
            name="sdxl-turbo",
            hub_id="stabilityai/sdxl-turbo",
            about="SDXL Turbo, distilled to a few steps",
            licence="Stability AI Community",
            **_SDXL,
            **{**_ONE_BRANCH, "steps": 4},
        ),
        KnownModel(
            name="sd3.5-large-turbo",
            hub_id="stabilityai/stable-diffusion-3.5-large-turbo",
            about="Stable Diffusion 3.5 Large Turbo, distilled to a few steps",
            licence="Stability AI Community",
            **{**_SD3, "parameters": 8_056_627_520},
            **{**_ONE_BRANCH, "steps": 4},
        ),
        KnownModel(
            name="z-image-turbo",
            hub_id="Tongyi-MAI/Z-Image-Turbo",
            about="Z-Image Turbo, distilled to a few steps",
            licence="Apache-2.0",
            **_FLOW,
            family="z-image",
            parameters=6_154_908_736,
            **{**_ONE_BRANCH, "steps": 8},
        ),
        KnownModel(
            name="flux2-klein-4b",
            hub_id="black-forest-labs/FLUX.2-klein-4B",
            about="FLUX.2 [klein] 4B, distilled to a few steps",
            licence="Apache-2.0",
            **_KLEIN,
            parameters=3_875_544_576,
            **{**_ONE_BRANCH, "steps": 4},
        ),
        KnownModel(
            name="flux2-klein-9b",
            hub_id="black-forest-labs/FLUX.2-klein-9B",
            about="FLUX.2 [klein] 9B, distilled to a few steps",
            licence="FLUX Non-Commercial",
            **_KLEIN,
            parameters=9_078_581_248,
            **{**_ONE_BRANCH, "steps": 4},
        ),
    )
}


def find_source(name: str, config: str | Path | None = None) -> Source:
    """What `--model NAME` stands for, by `selfnpo_core.models.sources.find_source`."""
    for known, (hub_id, what) in NOT_TAKEN.items():
        if name.partition("@")[0] in (known, hub_id):
            raise InputError(f"model {name} is {what}: {ONE_BRANCH}")
    from selfnpo_core.models.configs import fetched_configs
    from selfnpo_image.shipped import model_folder

    return sources.find_source(name, KNOWN, model_folder, config, fetched_configs)


def is_known(source: Source) -> bool:
    """Whether a model is in the table, by its name there or by its hub id."""
    return any(source.plain in (model.name, model.hub_id) for model in KNOWN.values())


def defaults(base: Base) -> KnownModel:
    """Sampling defaults of a model; for one that is not known, those of the first of its family that is like it."""
    if base.known is not None:
        return base.known
    alike = [model for model in KNOWN.values() if model.family == base.family and model.hub_id]
    return next((model for model in alike if model.distilled == base.distilled), alike[0])
