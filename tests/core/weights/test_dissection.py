"""Negative weights whose effect on a known world is written down, found on its guided trajectories."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfnpo_core import NULL, Estimate, InputError, NoiseSchedule, from_estimate, trajectory
from selfnpo_core.decomposition import Decomposition, contrast
from selfnpo_core.models.identity import weights_hash
from selfnpo_core.testing import GaussianWorld
from selfnpo_core.weights.dissection import Dissection, dissect, measure
from selfnpo_core.weights.inspection import added, measure_strength, scale_to_effect
from selfnpo_core.weights.npo_folder import Npo, NpoConfig, Recommended

SCHEDULE = NoiseSchedule.from_scheduler(
    {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012}
    | {"num_train_timesteps": 1000, "steps_offset": 1}
)
CONTRAST, SCALE, OWN = {"kappa": -0.3}, {"k": 0.4}, {"own": 0.2}
PROMPTS = 6


class World:
    """A backbone that knows the best denoiser. Its three weights are zero; what they do to the null prediction is told.

    own: of a field at right angles to the contrast m and the direction d, of m's length, row by row.
    """

    name = family = "world"
    prediction_type = "epsilon"
    device = torch.device("cpu")
    schedule = SCHEDULE

    def __init__(self, shape: tuple[int, ...] = (3, 4, 4)):
        self.latent_shape = shape
        self.world = GaussianWorld.random(shape, PROMPTS, seed=1)
        self.denoiser = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in ("kappa", "k", "own")})
        self.embedded: list[str] = []
        self.seen: list[Tensor] = []
        """Where the null prompt was asked about."""
        self.asked = torch.zeros(4, dtype=torch.int64)
        """The prompts that were asked about last, or where none was, of the rows of `measure_strength`."""

    def embed(self, prompts: Sequence[str]) -> None:
        self.embedded = list(prompts)

    def predict(self, x_t: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        x_t = x_t.double()
        level = self.schedule.at(t, like=x_t)
        x0 = self.world.estimate(x_t, level, prompt).x0
        if (prompt == NULL).all():
            self.seen.append(x_t)
            m, d = contrast(x0), self.world.estimate(x_t, level, self.asked).x0 - x0
            x0 = x0 + self.denoiser["kappa"] * m + self.denoiser["k"] * d + self.denoiser["own"] * _apart(m, d)
        else:
            self.asked = prompt
        return from_estimate(Estimate(x0, (x_t - level.alpha * x0) / level.sigma), x_t, level, self.prediction_type)


def _apart(m: Tensor, d: Tensor) -> Tensor:
    field = torch.randn(m.shape, generator=torch.Generator().manual_seed(9), dtype=m.dtype)
    result = torch.empty_like(m)
    for n in range(len(m)):
        basis = torch.linalg.qr(torch.stack([m[n].flatten(), d[n].flatten()], dim=1)).Q
        flat = field[n].flatten() - basis @ (basis.T @ field[n].flatten())
        result[n] = (flat * m[n].norm() / flat.norm()).reshape(m[n].shape)
    return result


def npo(backbone: World, weights: dict[str, float], **recommended: Any) -> Npo:
    config = NpoConfig(
        family="world",
        base_model="world",
        base_hash=weights_hash(backbone.denoiser),
        train="full",
        rank=None,
        recipe={},
        recommended=Recommended(**recommended),
    )
    tensors = {name: torch.tensor(value) for name, value in weights.items()}
    return Npo(path=Path("delta.safetensors"), kind="delta", tensors=tensors, config=config)


def taken_apart(weights: dict[str, float], shape: tuple[int, ...] = (3, 4, 4), **recommended: Any) -> Dissection:
    backbone = World(shape)
    made = npo(backbone, weights, **recommended)
    return measure(made, backbone, ["a"], trajectories=PROMPTS, steps=5)[1]  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 3, 4, 4)])
@pytest.mark.parametrize("weights", [CONTRAST, SCALE, OWN, {**CONTRAST, **SCALE, **OWN}])
def test_a_constructed_negative_is_recovered(weights: dict[str, float], shape: tuple[int, ...]) -> None:
    """At every noise level within 2 %, and more exactly than that."""
    found = taken_apart(weights, shape)
    assert len(found.by_timestep) == 5
    for _, level in (*found.by_timestep, (None, found.overall)):
        assert level.kappa == pytest.approx(weights.get("kappa", 0), abs=1e-4)
        assert level.k == pytest.approx(weights.get("k", 0), abs=1e-4)
        if len(weights) == 1:
            assert level.rest_share == pytest.approx(float("own" in weights), abs=1e-4)


def test_the_share_of_r_of_a_mixture() -> None:
    """κ·m and the field of own direction are at right angles, of lengths 3 : 4."""
    for _, level in taken_apart({"kappa": 0.3, "own": 0.4}).by_timestep:
        assert level.rest_share == pytest.approx(16 / 25, rel=1e-3)
        assert level.contrast_share == pytest.approx(9 / 25, rel=1e-3)


def test_it_is_taken_apart_as_it_is_recommended() -> None:
    found = taken_apart(SCALE, beta=0.5, guidance_scale=(2.0, 6.0))
    assert (found.beta, found.guidance_scale) == (0.5, 4.0)
    assert found.overall.k == pytest.approx(0.2, rel=1e-3)
    facts = found.as_facts()
    assert facts["overall"]["effective_scale"] == pytest.approx(4 - 3 * 0.2, rel=1e-3)
    assert [level["timestep"] for level in facts["by_timestep"]] == [801, 601, 401, 201, 1]
    assert facts["sentence"] == found.sentence


def test_the_places_are_those_of_plain_guidance() -> None:
    """Of all trajectories, which are walked a few at a time: four, then two."""
    backbone = World()
    weights = npo(backbone, OWN).tensors
    found = dissect(
        backbone,  # type: ignore[arg-type]
        lambda beta=1.0: added(backbone.denoiser, weights, beta),
        guidance_scale=3.0,
        trajectories=PROMPTS,
        steps=4,
        seed=5,
    )
    generator = torch.Generator().manual_seed(5)
    noise = torch.cat([torch.randn((n, 3, 4, 4), generator=generator) for n in (4, 2)]).double()
    prompt = torch.arange(PROMPTS)
    denoise = backbone.world.denoiser(SCHEDULE)
    for n, step in enumerate(trajectory(denoise, SCHEDULE, SCHEDULE.grid(4), noise, prompt, w=2.0)):
        for weak in (0, 1):  # the null prompt, without and with the weights
            seen = torch.cat([backbone.seen[2 * n + weak], backbone.seen[8 + 2 * n + weak]])
            torch.testing.assert_close(seen, step.x_t, atol=1e-5, rtol=1e-5)
        empty = denoise(step.x_t, step.t, torch.full_like(prompt, NULL)).x0
        d = denoise(step.x_t, step.t, prompt).x0 - empty
        assert found.by_timestep[n][1].size == pytest.approx(0.2 * float(contrast(empty).norm() / d.norm()), rel=1e-3)


def test_strength_is_what_it_was() -> None:
    """Nothing of it depends on the prompts."""
    backbone = World()
    made = npo(backbone, OWN)
    strength, _ = measure(made, backbone, ["a"], trajectories=1, steps=2)  # type: ignore[arg-type]
    fresh = World()
    assert strength == measure_strength(made, fresh)  # type: ignore[arg-type]
    assert all(not bool(weight) for weight in backbone.denoiser.values())


def test_prompts_are_picked_from_all_of_them() -> None:
    backbone = World()
    measure(npo(backbone, OWN), backbone, list("abcdefgh"), trajectories=4, steps=1)  # type: ignore[arg-type]
    assert backbone.embedded == ["a", "c", "e", "g"]
    measure(npo(backbone, OWN), backbone, ["a", "b"], trajectories=4, steps=1)  # type: ignore[arg-type]
    assert backbone.embedded == ["a", "a", "b", "b"]
    with pytest.raises(InputError, match="at least one"):
        measure(npo(backbone, OWN), backbone, ["a"], trajectories=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("contrast_share", "scale_share", "rest_share", "words"),
    [
        (0.2, 0.3, 0.5, "its own direction (r is 50% of it"),
        (0.0, 0.0, 0.99, "its own direction (r is 99% of it"),
        (0.5, 0.1, 0.49, "mostly contrast (κ -0.250, alone 50% of it)"),
        (0.7, 0.6, 0.1, "mostly contrast (κ -0.250"),
        (0.6, 0.7, 0.1, "a guidance scale of 2.50 in disguise, where 3 is asked for (k +0.250, alone 70% of it)"),
        (0.49, 0.49, 0.02, "contrast (κ -0.250) and a guidance scale of 2.50 together (r is 2% of it)"),
    ],
)
def test_one_sentence_says_what_it_is(contrast_share: float, scale_share: float, rest_share: float, words: str) -> None:
    shares = {"contrast_share": contrast_share, "scale_share": scale_share, "rest_share": rest_share}
    overall = Decomposition(size=0.3, kappa=-0.25, k=0.25, **shares)
    found = Dissection(guidance_scale=3.0, beta=1.0, trajectories=1, by_timestep=(), overall=overall)
    assert found.sentence.startswith(words)


def test_a_negative_that_changes_nothing_there() -> None:
    assert taken_apart({"k": 0.0}).sentence.startswith("nothing")


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (CONTRAST, "mostly contrast (κ -0.300"),
        (SCALE, "a guidance scale of 3.70 in disguise"),
        (OWN, "its own direction"),
    ],
)
def test_constructed_negatives_are_called_by_their_names(weights: dict[str, float], words: str) -> None:
    assert taken_apart(weights).sentence.startswith(words)


def test_an_offset_is_scaled_to_the_effect_of_another() -> None:
    """Of equal norm, a control's offset may do much less. Here the effect is known: own times the length of a field."""
    backbone = World()
    like = {"own": torch.tensor(0.2)}
    assert scale_to_effect(backbone, {"own": torch.tensor(-0.05)}, like, beta=0.5) == pytest.approx(2, rel=0.01)
    both = {"own": torch.tensor(0.02), "k": torch.tensor(0.001)}
    scale = scale_to_effect(backbone, both, like)
    assert scale == pytest.approx(10, rel=0.02)
    assert all(float(parameter) == 0 for parameter in backbone.denoiser.values())
    for offset, other in (({"own": torch.tensor(0.0)}, like), (like, {"k": torch.tensor(0.0)})):
        with pytest.raises(InputError, match="that change predictions"):
            scale_to_effect(backbone, offset, other)
