"""Known base models of the SD1.5 family, and what a name given to `--model` stands for."""

from pathlib import Path

from selfnpo_core import sources
from selfnpo_core.sources import KnownModel, Source

KNOWN = {
    model.name: model
    for model in (
        KnownModel(
            name="demo",
            hub_id=None,
            about="ships with the package: 64×64 pictures of coloured shapes",
            licence="Apache-2.0",
            parameters=2_800_000,
            prediction_type="epsilon",
            dtype="fp32",
            guidance_scale=3.0,
        ),
        KnownModel(
            name="sd15",
            hub_id="stable-diffusion-v1-5/stable-diffusion-v1-5",
            about="Stable Diffusion 1.5",
            licence="CreativeML Open RAIL-M",
            parameters=859_520_964,
            prediction_type="epsilon",
            dtype="fp16",
        ),
        KnownModel(
            name="dreamshaper",
            hub_id="Lykon/dreamshaper-8",
            about="DreamShaper 8, a preference-tuned SD1.5",
            licence="CreativeML Open RAIL-M",
            parameters=859_520_964,
            prediction_type="epsilon",
            dtype="fp16",
        ),
    )
}


def find_source(name: str, config: str | Path | None = None) -> Source:
    """What `--model NAME` stands for, by `selfnpo_core.sources.find_source`."""
    from selfnpo_image.demo.assets import model_folder

    return sources.find_source(name, KNOWN, model_folder, config)


def defaults(name: str) -> KnownModel:
    """Sampling defaults of a model; those of SD1.5 for one that is not known."""
    return KNOWN.get(name, KNOWN["sd15"])
