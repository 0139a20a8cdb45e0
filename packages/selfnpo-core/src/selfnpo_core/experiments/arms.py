"""The arms of a demo's tables: Self-NPO, and what it is to be compared with at the same prompts and seeds.

cfg                 plain classifier-free guidance
npo                 the recipe's negative weights on the negative branch
random              on the negative branch a random offset that changes ε as much as npo's does
shuffled            the same, with npo's own numbers in a random order within every tensor
paper               as npo, by a pool at w = −1 and pseudo-Huber, whatever the demo's own recipe is
ours                finished samples of guidance, trained by the diffusion loss under the null prompt only
prompted            as ours, trained under the samples' own prompts (Neon's way, 2510.03597)
sims                samples without guidance, trained under their prompts; asked with the prompt (SIMS, 2408.16333)
neon                θ − w·δ on both branches, δ as npo's (2510.03597)
tuned               plain guidance with η, the demo's preference-tuned LoRA, on both branches
tuned_npo_a0 _a1    the same with α·η + β·δ on the negative branch, α being 0 or 1 and δ npo's

random, shuffled, neon and the tuned ones take another trained arm's weights where they are told to (`weights`). The
tensors of random and shuffled have the norms of the weights', all of them times one factor, `offset_scale`, at which
‖Δε‖ is the weights' over the points of `scale_to_effect`. At equal norm it would be a small part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from selfnpo_core.adapters import NegativeDelta, attach_npo
from selfnpo_core.adapters.attach import ETA, load_lora
from selfnpo_core.errors import InputError
from selfnpo_core.experiments.cells import Arm
from selfnpo_core.experiments.measure import plain
from selfnpo_core.negative import random_like, shuffled
from selfnpo_core.system.files import file_sha256, read_json
from selfnpo_core.training import Recipe, resolve_recipe, train
from selfnpo_core.training.resolving import build_recipe, changed_keys
from selfnpo_core.weights.inspection import scale_to_effect
from selfnpo_core.weights.npo_folder import load_npo
from selfnpo_core.weights.npo_rule import NpoRule
from selfnpo_core.weights.offsets import offset_of
from selfnpo_core.worlds.world import Demo

_SAMPLES = {
    "train": "lora",
    "rank": 16,
    "targets": "all",
    "learning_rate": 1e-3,
    "average": 0.15,
    "rollout": "samples",
    "sample_grid_steps": 10,
    "loss": "denoising",
    "loss_weighting": "snr",
    "recommended": {"beta": 1.0, "guidance_scale": (2.0, 3.0)},
}
"""Finished samples, as many and used as often as the demo's recipe says."""
TRAINED: Mapping[str, Mapping[str, Any]] = {
    "npo": {},
    "paper": {
        "train": "full",
        "rollout": "pool",
        "teacher_guidance": -1.0,
        "advance_guidance": None,
        "loss": "huber",
        "loss_weighting": "none",
        "student_prompt_dropout": 0.5,
        "learning_rate": 5e-5,
        "steps": 200,
    },
    "ours": {**_SAMPLES, "sample_guidance": 2.0, "student_prompt_dropout": 1.0},
    "prompted": {**_SAMPLES, "sample_guidance": 2.0, "student_prompt_dropout": 0.1},
    "sims": {
        **_SAMPLES,
        "sample_guidance": 1.0,
        "student_prompt_dropout": 0.1,
        "negative_condition": "prompt",
    },
}
"""Changes to the demo's recipe for each arm that trains weights of its own."""

CONTROLS = {"random": random_like, "shuffled": shuffled}
"""Arm → what puts another offset in the place of the trained one."""
NEON_STRENGTH = 0.5
ALPHAS = {"tuned_npo_a0": 0.0, "tuned_npo_a1": 1.0}
TUNED_ARMS = ("tuned", *ALPHAS)


def train_arm(demo: Demo, arm: str, seed: int, work: Path) -> Path:
    """The run folder of an arm's weights: work/ARM-sSEED, trained now unless it is there already."""
    return train_changed(demo, TRAINED[arm], seed, work / f"{arm}-s{seed}")


def train_changed(demo: Demo, changes: Mapping[str, Any], seed: int, output: Path) -> Path:
    """The run folder `output` of the demo's recipe with changes, trained now unless it is there already."""
    recipe = resolve_recipe(demo.presets, None, {"model": "demo", "seed": seed, "train": demo.kind, **changes})
    if _finished(output, recipe):
        return output
    train(demo.backbone(), recipe, demo.captions(), output, resume=(output / "run.json").is_file())
    return output


def _finished(output: Path, recipe: Recipe) -> bool:
    config = output / "npo" / "npo_config.json"
    if not config.is_file():
        return False
    made = build_recipe(read_json(config)["recipe"])
    done = (output / "checkpoints" / f"step-{recipe.steps:06d}").is_dir()
    return done and made.recommended == recipe.recommended and not changed_keys(made, recipe)


def make_arm(
    demo: Demo,
    arm: str,
    seed: int,
    work: Path,
    *,
    weights: str = "npo",
    beta: float | None = None,
    strength: float = NEON_STRENGTH,
    **use: Any,
) -> Arm:
    """An arm of the table, its weights trained if it needs any.

    seed: of the training. weights: the trained arm whose δ it takes, where it trains none itself. strength: of Neon.
    use: rule and condition of an arm with weights of its own, as `attach_npo` takes them.
    """
    if arm == "cfg":
        return Arm(name="cfg", attach=plain, note={}, against=(), base=True)
    if arm in TUNED_ARMS and demo.preference is None:
        raise InputError("this demo has no preference-tuned variant: leave the tuned arms out")
    if arm == "tuned":
        return Arm(name="tuned", attach=partial(_preferred, demo), note={}, base=True)
    run = train_arm(demo, arm if arm in TRAINED else weights, seed, work)
    npo = load_npo(run)
    assert npo.config is not None
    if arm == "neon":
        use = {"rule": NpoRule(name="neon", weight=strength)}
    beta = npo.config.recommended.beta if beta is None else beta
    note: dict[str, Any] = {"training_seed": seed, "recipe": npo.config.recipe, "npo_sha256": file_sha256(npo.path)}
    note |= {} if arm in TRAINED or weights == "npo" else {"weights": weights}

    if arm in CONTROLS:
        delta = offset_of(npo)
        offset = CONTROLS[arm](delta, torch.Generator().manual_seed(seed))
        note["offset_scale"] = scale_to_effect(demo.backbone(), offset, delta, beta=beta)

    @contextmanager
    def negative(pipe: Any) -> Iterator[None]:
        with attach_npo(pipe, run, beta=beta, **use):
            yield

    @contextmanager
    def control(pipe: Any) -> Iterator[None]:
        with NegativeDelta.attach(pipe, offset, beta=note["offset_scale"]):
            yield

    @contextmanager
    def tuned(pipe: Any) -> Iterator[None]:
        with _preferred(demo, pipe), attach_npo(pipe, run, alpha=ALPHAS[arm], beta=beta, other_base=True):
            yield

    ways = {**dict.fromkeys(CONTROLS, control), **dict.fromkeys(ALPHAS, tuned)}
    note |= {"strength": strength} if arm == "neon" else {"beta": beta}
    note |= {key: str(value) for key, value in use.items() if arm != "neon"}
    note |= {"alpha": ALPHAS[arm]} if arm in ALPHAS else {}
    compared = ("cfg", "tuned") if arm in ALPHAS else ("cfg",)
    return Arm(name=f"{arm}-s{seed}", attach=ways.get(arm, negative), note=note, against=compared)


@contextmanager
def _preferred(demo: Demo, pipe: Any) -> Iterator[None]:
    """The pipeline at θ + η."""
    assert demo.preference is not None
    load_lora(pipe, demo.preference, ETA)
    try:
        yield
    finally:
        pipe.unload_lora_weights()
