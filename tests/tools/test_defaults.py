"""What a run gets if its user names a model and no more: finished samples, at a rate for the model's width."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from selfnpo_core.commands.family import AnyFamily
from selfnpo_core.commands.train import resolve
from selfnpo_core.training.presets import SAMPLED
from selfnpo_core.training.recipe import Recipe
from selfnpo_image import families as images
from selfnpo_image.family import IMAGE
from selfnpo_video import families as videos
from selfnpo_video.family import VIDEO

ALL = {
    "average": 0.15,
    "objective": "tdft",
    "loss": "denoising",
    "loss_weighting": "snr",
    "student_prompt_dropout": 1.0,
    "rollout": "samples",
    "samples": None,
    "rounds": 1,
    "sample_guidance": 2.0,
    "sample_grid_steps": 10,
    "negative_condition": "null",
}
PICTURES = {"steps": 600, "uses": 20, "update_rows": 32}
LARGE = {**PICTURES, "batch_size": 4, "mixed_precision": "bf16", "gradient_checkpointing": True}
CLIPS = {"steps": 400, "uses": 16, "update_rows": 8, "batch_size": 1, "mixed_precision": "bf16"}
OWN = {
    "sd15": {**PICTURES, "batch_size": 16, "mixed_precision": "no"},
    "sdxl": LARGE,
    "sd3": LARGE,
    "qwen-image": {**LARGE, "batch_size": 1},
    "z-image": LARGE,
    "flux2-klein": LARGE,
    "cogvideox": {**CLIPS, "gradient_checkpointing": True},
    "wan": {**CLIPS, "gradient_checkpointing": True},
    "demo": {**PICTURES, "batch_size": 32, "samples": 2000, "uses": 10},
}
SCALES = {"demo": (2.0, 3.0), "cogvideox": (2.0, 6.0), "wan": (2.0, 5.0)}
WIDER = {"qwen-image": 3072, "z-image": 3840, "flux2-klein": 3072}
WIDTHS = {"wan2.1-1.3b": 1536, "wan2.1-14b": 5120}
SINGLE = ["sdxl-turbo", "sd3.5-large-turbo", "z-image-turbo", "flux2-klein-4b", "flux2-klein-9b"]
"""Distilled models, which run one branch."""
MODELS = [(IMAGE, name) for name in IMAGE.known() if name not in SINGLE] + [
    (VIDEO, name) for name in VIDEO.known() if name != "demo"
]


def default(family: AnyFamily, model: str, *overrides: str) -> Recipe:
    keys = dict.fromkeys(("prompts", "output", *family.recipe_options))
    return resolve(family, {**keys, "model": model, "config": None, "resume": False, "overrides": overrides})[1]


@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize(("family", "model"), MODELS, ids=[f"{family.program} {name}" for family, name in MODELS])
def test_every_model_trains_on_finished_samples(family, model, train):
    kind = "demo" if model == "demo" else family.known()[model].family
    recipe = default(family, model, f"train={train}")
    wanted = {**ALL, **OWN[kind], **({"rank": 16, "targets": "all"} if train == "lora" else {})}
    if (model, train) == ("cogvideox-2b", "lora"):
        wanted["mixed_precision"] = "fp16"  # as it is sampled
    assert {key: getattr(recipe, key) for key in wanted} == wanted
    assert recipe.recommended.beta == 1.0
    assert recipe.recommended.guidance_scale == SCALES.get(kind, (2.0, 4.0))
    width = WIDTHS.get(model, 3072 if "5b" in model else 1920)
    rates = {"demo": (1e-3, 5e-5)}
    rates |= {own: (1e-4 * 1536 / of, 5e-6 * 1536 / of) for own, of in WIDER.items()}
    rates |= {own: (1e-4 * of / width, 5e-6 * of / width) for own, of in (("cogvideox", 1920), ("wan", 1536))}
    assert recipe.learning_rate == pytest.approx(rates.get(kind, (1e-4, 5e-6))[train == "full"], rel=0.03)


@pytest.mark.parametrize("model", SINGLE)
def test_a_distilled_model_learns_its_own_samples_under_their_prompts(model):
    recipe = default(IMAGE, model)
    assert (recipe.rollout, recipe.sample_guidance, recipe.student_prompt_dropout) == ("samples", 1.0, 0.0)
    assert recipe.recommended.rule.name == "neon"


def test_those_that_are_distilled_are_known():
    assert [name for name, known in IMAGE.known().items() if known.distilled] == SINGLE


def test_all_that_it_is_known_by_is_said_in_one_place():
    assert SAMPLED.keys() - {"uses", "recommended"} == ALL.keys() - {"rounds"}


UNET, TRANSFORMER = {"block_out_channels": [32, 64]}, {"num_attention_heads": 8, "attention_head_dim": 64}


@pytest.mark.parametrize(
    ("model", "network", "rates"),
    [
        ("sd15", UNET, (1e-3, 5e-5)),
        ("sd15", {"block_out_channels": [320, 640]}, (1e-4, 5e-6)),
        ("sd15", {}, (1e-4, 5e-6)),
        ("sd15", None, (1e-4, 5e-6)),  # on the hub
        ("sdxl", {"block_out_channels": [160, 320]}, (2e-4, 1e-5)),
        ("sd3.5-medium", TRANSFORMER, (3e-4, 1.5e-5)),
        ("sd3.5-medium", {"num_layers": 2}, (1e-4, 5e-6)),
        ("demo", UNET, (1e-3, 5e-5)),
    ],
)
def test_a_picture_model_of_another_width(model, network, rates):
    presets = images.presets_for(replace(images.find_base(model), network=network))
    assert (presets["lora"]["learning_rate"], presets["full"]["learning_rate"]) == rates


def test_a_clip_model_of_another_width():
    base = replace(videos.find_base("cogvideox-2b"), transformer=SimpleNamespace(**TRANSFORMER))
    assert videos.presets_for(base)["lora"]["learning_rate"] == 3.75e-4


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3.5-medium"])
def test_the_paper_s_rates_are_as_published(name):
    base = replace(images.find_base(name), network={**UNET, **TRANSFORMER})
    assert images.presets_for(base, "paper") is base.kind.paper
