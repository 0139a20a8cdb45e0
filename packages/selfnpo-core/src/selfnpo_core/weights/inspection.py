"""What a file of negative weights is: its base, layers, rank, norms, and how much it changes predictions.

Strength is ‖Δε‖/‖ε‖, the root mean square over predictions at points of unconditional trajectories of the base (DDIM,
2010.02502), spread over all noise levels. It needs the base model; without it there are only the weights' norms.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from selfnpo_core.errors import InputError
from selfnpo_core.guidance import NULL
from selfnpo_core.models.storage import narrow, widened_with
from selfnpo_core.negative import Factors
from selfnpo_core.prediction import Estimate, to_estimate
from selfnpo_core.rollout import Step, trajectory
from selfnpo_core.system.extras import pyplot
from selfnpo_core.weights.lora_file import LoraFile
from selfnpo_core.weights.lora_layers import put_into
from selfnpo_core.weights.npo_folder import Npo, check_base, load_npo
from selfnpo_core.weights.offsets import lora_of

if TYPE_CHECKING:
    from selfnpo_core.models.backbone import Backbone, LoadingBackbone


MOST_SECANTS = 12


class Negative(Protocol):
    """Turns the negative weights on, at θ + β·δ; they are off outside of it."""

    def __call__(self, beta: float = 1.0, /) -> AbstractContextManager[None]: ...


@dataclass(frozen=True, kw_only=True)
class Strength:
    """‖Δε‖/‖ε‖ over all points, at the noisiest and the cleanest of them, and at each: (timestep, ‖Δε‖/‖ε‖)."""

    overall: float
    noisiest: float
    cleanest: float
    by_timestep: tuple[tuple[float, float], ...]


def describe(npo: Npo) -> dict[str, Any]:
    """All that the file itself tells."""
    config = npo.config
    facts: dict[str, Any] = {
        "path": str(npo.path),
        "kind": "LoRA" if npo.kind == "lora" else "full-weight offset",
        "family": config.family if config else None,
        "base_model": config.base_model if config else None,
        "base_hash": config.base_hash if config else None,
        "recommended": config.recommended.model_dump(mode="json") if config else None,
        "negative_condition": config.negative_condition if config else None,
        "null_prompt": config.null_prompt if config else None,
        "parameters": sum(tensor.numel() for tensor in npo.tensors.values()),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in npo.tensors.values()}),
        "has_effect": npo.has_effect,
        "finite": all(bool(tensor.float().isfinite().all()) for tensor in npo.tensors.values()),
    }
    return facts | (_delta_facts(npo.tensors) if npo.lora is None else _lora_facts(npo.lora))


def inspect_npo(path: str | Path) -> Npo:
    """The weights, even if they do nothing."""
    return load_npo(path, require_effect=False)


@torch.no_grad()
def measure_strength(
    npo: Npo, backbone: "LoadingBackbone", *, rows: int = 4, steps: int = 10, seed: int = 0
) -> Strength:
    """Ask the base with and without the weights at `steps` × `rows` points. Raises `InputError` for another base."""
    with on_base(npo, backbone) as negative:
        return strength_of(backbone, negative, rows=rows, steps=steps, seed=seed)


@contextmanager
def on_base(npo: Npo, backbone: "LoadingBackbone", prompts: Sequence[str] = ()) -> Iterator[Negative]:
    """The base on its device with these prompts embedded, and a switch for the weights.

    Once for a backbone. Raises `InputError` for another base.
    """
    check_base(npo, backbone.denoiser, backbone.name, family=backbone.family)
    backbone.embed(prompts)
    with _switch(backbone, npo) as negative, narrow(backbone.denoiser, backbone.device):
        yield negative


@torch.no_grad()
def strength_of(
    backbone: "LoadingBackbone", negative: Negative, *, rows: int = 4, steps: int = 10, seed: int = 0
) -> Strength:
    """`measure_strength` with what `on_base` made."""
    changes, sizes, times = [], [], []
    for step in _unconditional(backbone, backbone.device, rows, steps, seed):
        with negative():
            changed = _estimate(backbone, step.x_t, step.t, torch.full_like(step.index, NULL))
        changes.append(float((changed.eps - step.estimate.eps).norm()))
        sizes.append(float(step.estimate.eps.norm()))
        times.append(float(step.t[0]))
    ratios = [change / size for change, size in zip(changes, sizes, strict=True)]
    return Strength(
        overall=math.hypot(*changes) / math.hypot(*sizes),
        noisiest=ratios[0],
        cleanest=ratios[-1],
        by_timestep=tuple(zip(times, ratios, strict=True)),
    )


def plot(facts: Mapping[str, Any], path: Path, *, shown: int = 15) -> None:
    """Three pictures in one file: ‖Δε‖/‖ε‖ over the timesteps, the layers that carry most, and what the change is."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(19, 4.5), layout="constrained")
    _plot_strength(axes[0], facts["strength"])
    layers = facts["by_layer"][:shown]
    names = [layer["layer"] for layer in reversed(layers)]
    axes[1].barh(names, [100 * layer["share"] for layer in reversed(layers)])
    axes[1].set_title("share of ‖δ‖², %")
    axes[1].tick_params(axis="y", labelsize=7)
    _plot_decomposition(axes[2], facts.get("decomposition"))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plot_strength(axis: Any, strength: Mapping[str, Any] | None) -> None:
    axis.set(title="‖Δε‖/‖ε‖, %", xlabel="timestep (noise to the right)")
    if not strength:
        _say(axis, "not measured: give --model")
        return
    times, ratios = zip(*strength["by_timestep"], strict=True)
    axis.plot(times, [100 * ratio for ratio in ratios], marker="o")
    axis.set_ylim(0, None)
    axis.grid(alpha=0.3)


def _plot_decomposition(axis: Any, found: Mapping[str, Any] | None) -> None:
    """The knobs on the left axis, what they leave on the right one."""
    axis.set(title="Δ = κ·(contrast) + k·d + r", xlabel="timestep (noise to the right)")
    if not found:
        _say(axis, "not measured: give --model")
        return
    levels = found["by_timestep"]
    times = [level["timestep"] for level in levels]
    axis.plot(times, [level["kappa"] for level in levels], marker="o", label="κ, contrast")
    axis.plot(times, [level["k"] for level in levels], marker="o", label="k, guidance scale")
    axis.axhline(0, color="grey", lw=0.5)
    axis.grid(alpha=0.3)
    rest = axis.twinx()
    rest.plot(times, [100 * level["rest_share"] for level in levels], color="grey", ls="--", label="r, % of ‖Δ‖²")
    rest.set(ylim=(0, 105))
    lines = [*axis.get_lines()[:2], *rest.get_lines()]
    axis.legend(lines, [line.get_label() for line in lines], loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)


def _say(axis: Any, words: str) -> None:
    axis.text(0.5, 0.5, words, ha="center", transform=axis.transAxes)


@torch.no_grad()
def effect_errors(
    backbone: "LoadingBackbone",
    exact: Mapping[str, Tensor],
    others: Mapping[str, Mapping[str, Tensor]],
    *,
    rows: int = 4,
    steps: int = 10,
    seed: int = 0,
) -> dict[str, float]:
    """How far the effect of each of `others` is from that of the offset `exact` (parameter → δ).

    ‖ε[θ + δ′] − ε[θ + δ]‖ / ‖ε[θ + δ] − ε[θ]‖ over the points of `measure_strength`, at the null prompt. Under negative
    guidance both differences come with the same factor, 1 − g, so it is also the error of the guided output.
    """
    backbone.embed([])
    with narrow(backbone.denoiser, backbone.device):
        return _effect_errors(backbone, exact, others, rows=rows, steps=steps, seed=seed)


def _effect_errors(
    backbone: "Backbone",
    exact: Mapping[str, Tensor],
    others: Mapping[str, Mapping[str, Tensor]],
    *,
    rows: int,
    steps: int,
    seed: int,
) -> dict[str, float]:
    changes: list[float] = []
    apart: dict[str, list[float]] = {name: [] for name in others}
    device = next(backbone.denoiser.parameters()).device
    for step in _unconditional(backbone, device, rows, steps, seed):
        null = torch.full_like(step.index, NULL)

        def asked(offset: Mapping[str, Tensor], step: Step = step, null: Tensor = null) -> Tensor:
            with added(backbone.denoiser, offset):
                return _estimate(backbone, step.x_t, step.t, null).eps

        whole = asked(exact)
        changes.append(float((whole - step.estimate.eps).norm()))
        for name, offset in others.items():
            apart[name].append(float((asked(offset) - whole).norm()))
    return {name: math.hypot(*errors) / math.hypot(*changes) for name, errors in apart.items()}


@torch.no_grad()
def scale_to_effect(
    backbone: "LoadingBackbone",
    offset: Mapping[str, Tensor],
    like: Mapping[str, Tensor],
    *,
    beta: float = 1.0,
    rows: int = 4,
    steps: int = 10,
    seed: int = 0,
) -> float:
    """The factor c at which an offset changes ε as much as another does at strength β.

    ‖ε[θ + c·offset] − ε[θ]‖ = ‖ε[θ + β·like] − ε[θ]‖ to 1 %, over the points of `measure_strength`, at the null prompt.
    Found by secants of log ‖Δε‖ over log c. Raises `InputError` where an offset does nothing, or no c is found.
    """
    backbone.embed([])
    backbone.denoiser.to(backbone.device)
    points = list(_unconditional(backbone, backbone.device, rows, steps, seed))

    def effect(of: Mapping[str, Tensor], strength: float) -> float:
        with added(backbone.denoiser, of, strength):
            changed = [_estimate(backbone, at.x_t, at.t, torch.full_like(at.index, NULL)).eps for at in points]
        return math.hypot(*(float((eps - at.estimate.eps).norm()) for eps, at in zip(changed, points, strict=True)))

    wanted, scale, power = effect(like, beta), abs(beta), 1.0
    before: tuple[float, float] | None = None
    for _ in range(MOST_SECANTS):
        made = effect(offset, scale)
        if not (wanted > 0 and made > 0 and math.isfinite(wanted) and math.isfinite(made)):
            raise InputError(f"a control needs two offsets that change predictions: these do by {wanted} and {made}")
        if abs(made / wanted - 1) < 0.01:
            return scale
        if before is not None and before[0] != scale:
            slope = math.log(made / before[1]) / math.log(scale / before[0])
            power = min(max(slope, 0.5), 4.0)  # a wild slope would throw the next guess far off
        before = scale, made
        scale *= (wanted / made) ** (1 / power)
    raise InputError(f"no strength of the control's offset has the effect of the weights (‖Δε‖ {made} and {wanted})")


@contextmanager
def added(network: nn.Module, offset: Mapping[str, Tensor], beta: float = 1.0) -> Iterator[None]:
    """The network at θ + β·δ; θ is put back bit for bit."""
    parameters = dict(network.named_parameters())
    before = {name: parameters[name].detach().clone() for name in offset if name in parameters}
    try:
        with ExitStack() as widened:
            for name, tensor in offset.items():
                if name in parameters:
                    parameters[name].data.add_(tensor.to(parameters[name]), alpha=beta)
                else:
                    widened.enter_context(widened_with(network, name, tensor, beta))
            yield
    finally:
        for name, tensor in before.items():
            parameters[name].data.copy_(tensor)


def _unconditional(backbone: "Backbone", device: torch.device, rows: int, steps: int, seed: int) -> Iterator[Step]:
    """The places of an unconditional trajectory of `rows` samples."""
    noise = torch.randn((rows, *backbone.latent_shape), generator=torch.Generator().manual_seed(seed))
    null = torch.full((rows,), NULL, device=device)
    denoise, grid = partial(_estimate, backbone), backbone.schedule.grid(steps)
    return trajectory(denoise, backbone.schedule, grid, noise.to(device), null)


def _estimate(backbone: "Backbone", x_t: Tensor, t: Tensor, prompt: Tensor) -> Estimate:
    level = backbone.schedule.at(t, like=x_t)
    return to_estimate(backbone.predict(x_t, t, prompt).float(), x_t, level, backbone.prediction_type)


@contextmanager
def _switch(backbone: "LoadingBackbone", npo: Npo) -> Iterator[Negative]:
    """The weights as a switch, off at first."""
    network: Any = backbone.denoiser
    if npo.kind == "lora":
        put_into(network, lora_of(npo, network), "npo")
        network.disable_lora()

        @contextmanager
        def lora(beta: float = 1.0) -> Iterator[None]:
            network.set_adapters(["npo"], [beta])
            network.enable_lora()
            yield
            network.disable_lora()

        yield lora
        return
    yield partial(added, network, npo.tensors)


def _lora_facts(lora: LoraFile) -> dict[str, Any]:
    """Layers of the denoiser, ranks and ‖s·B·A‖, and what else the file holds."""
    norms = {name: _product_norm(factors) for name, factors in lora.layers.items()}
    return {
        "layers": len(lora.layers),
        "layers_without_effect": sum(norm == 0 for norm in norms.values()),
        "ranks": sorted({factors.rank for factors in lora.layers.values()}),
        "norm": math.hypot(*norms.values()),
        "by_layer": _shares(norms),
        "naming": lora.naming,
        "left_out": lora.left_out(),
        "alpha_guessed": lora.guessed,
    }


def _delta_facts(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    norms = {name: float(tensor.float().norm()) for name, tensor in tensors.items()}
    return {
        "layers": len(tensors),
        "layers_without_effect": sum(norm == 0 for norm in norms.values()),
        "ranks": [],
        "norm": math.hypot(*norms.values()) if norms else 0.0,
        "by_layer": _shares(norms),
        "naming": None,
        "left_out": "",
        "alpha_guessed": 0,
    }


def _shares(norms: Mapping[str, float]) -> list[dict[str, Any]]:
    """Layers by their share of ‖δ‖², the largest first."""
    total = math.hypot(*norms.values()) ** 2 if norms else 0.0
    ordered = sorted(norms.items(), key=lambda item: -item[1])
    return [
        {"layer": name, "norm": norm, "share": norm**2 / total if total > 0 else 0.0}  # NaN has no share
        for name, norm in ordered
    ]


def _product_norm(factors: Factors) -> float:
    """‖s·B·A‖ = s·sqrt Σ (BᵀB)∘(AAᵀ), from r × r matrices only."""
    a, b = factors.down.double().flatten(1), factors.up.double().flatten(1)
    size = float(((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt())
    return abs(factors.alpha) / factors.rank * size
