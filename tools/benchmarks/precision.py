"""What is left of the effect of negative weights in 16 bits, by how the negative rows get them."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
import torch
from benchmarks.common import command, machine, use_threads, write
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from selfnpo_core.adapters import NegativeAdapters, NegativeDelta, NegativeLayers
from selfnpo_core.adapters.attach import load_lora
from selfnpo_core.adapters.hooks import replace_forward
from selfnpo_core.negative import compose, relative_drift
from selfnpo_image.demo.pictures import demo

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
EARLIER = Path(__file__).parents[1] / "earlier/image/unet/diffusion_pytorch_model.safetensors"
Attach = Callable[[], AbstractContextManager[Any]]
Places = list[tuple[Tensor, Tensor]]
"""x_t: (n, 4, h, w) and its timestep, ()."""


@click.command("precision")
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs/results/negative-precision.json"))
@click.option("--drifts", default="0.005,0.001,0.0005", show_default=True, help="‖β·δ‖/‖θ‖.")
@click.option("--rank", default=32, show_default=True, help="Of mode lowrank.")
@click.option("--rows", default=4, show_default=True, help="Samples.")
@click.option("--levels", default="2,5,8", show_default=True, help="Noise levels, 1 to 9 of ten.")
@click.option("--threads", default=1, show_default=True, help="CPU threads; 0 leaves torch's choice.")
def precision(output: Path, drifts: str, rank: int, rows: int, levels: str, threads: int) -> None:
    """Error of ‖Δε‖ against float32 for every --negative-mode in 16 bits, on the image demo's model.

    δ is what training changed between an earlier state of that model, tools/earlier, and the shipped one.
    """
    use_threads(threads)
    results: dict[str, Any] = {}
    places = _places(rows, [int(n) for n in levels.split(",")])
    for name, dtype in DTYPES.items():
        half = demo().pipeline().to(dtype)
        wide = copy.deepcopy(half).to(torch.float32)  # whose weights are those of 16 bits
        results[name] = {}
        for text in tqdm(drifts.split(","), desc=name, unit="drift"):
            results[name][text] = _errors(half, wide, places, float(text), rank)
            _write(output, results, f"{rows} samples at {len(places)} noise levels, null prompt")


def _write(output: Path, results: dict[str, Any], points: str) -> None:
    figures = {
        "schema": 1,
        "command": command(),
        "machine": machine(),
        "model": "the image demo's model: a toy, not a real one",
        "offset": "an earlier state of it less the shipped one, scaled; of adapters, the shipped preference LoRA",
        "unit": "Δ: Δε of float32, all points together; error: ‖Δε − Δ‖/‖Δ‖; kept: ⟨Δε, Δ⟩/‖Δ‖²",
        "rows": {
            "sum rounded to θ's grid": "no mode: what swap, bf16 and int8 did before",
            "exact weights": "no mode: every layer in float32, what it gives rounded to 16 bits; no mode can do better",
        },
        "points": points,
        "drift": results,
    }
    write(output, figures)


@torch.no_grad()
def _errors(half: Any, wide: Any, places: Places, drift: float, rank: int) -> dict[str, Any]:
    base = dict(wide.unet.named_parameters())
    earlier = load_file(EARLIER)
    whole = {name: earlier[name].float() - tensor for name, tensor in base.items()}
    delta = {name: (drift / relative_drift(whole, base)) * tensor for name, tensor in whole.items()}
    stored = {name: tensor.to(torch.bfloat16) for name, tensor in delta.items()}  # as runs store theirs
    truth = _attached(wide, places, lambda: NegativeDelta.attach(wide, stored))
    ways: dict[str, Attach] = {
        "swap": lambda: NegativeDelta.attach(half, stored),
        "bf16": lambda: NegativeLayers.attach(half, stored, store="bf16"),
        "int8": lambda: NegativeLayers.attach(half, stored, store="int8"),
        "lowrank": lambda: NegativeLayers.attach(half, stored, store=rank),
    }
    found = {way: _compared(_attached(half, places, attach), truth) for way, attach in ways.items()}
    lora = {pipe: _lora(pipe, base, drift) for pipe in (wide, half)}
    found = {"adapters": _compared(*(_attached(pipe, places, lora[pipe]) for pipe in (half, wide))), **found}
    rounded = compose(dict(half.unet.named_parameters()), delta=stored)
    found["sum rounded to θ's grid"] = _compared(_change(half, places, _with(half.unet, rounded), nullcontext), truth)
    exact = copy.deepcopy(wide.unet)
    exact.load_state_dict(compose(base, delta=stored))
    twins = [_in_float32(half.unet, other) for other in (exact, wide.unet)]
    found["exact weights"] = _compared(_change(half, places, *twins), truth)
    return found


def _compared(change: Tensor, truth: Tensor) -> dict[str, float]:
    size = truth.norm()
    return {
        "error": round(float((change - truth).norm() / size), 4),
        "kept": round(float((change * truth).sum() / size**2), 4),
    }


def _attached(pipe: Any, places: Places, attach: Attach) -> Tensor:
    """Δε at the null prompt, by one forward of negative and positive rows, the inputs of both being the same."""
    made = []
    with attach():
        for x, t in places:
            _, null = pipe.encode_prompt([""] * len(x), "cpu", 1, True)
            out = _asked(pipe, torch.cat([x, x]), t, torch.cat([null, null]))
            made.append(out[: len(x)] - out[len(x) :])
    return torch.cat(made)


def _change(pipe: Any, places: Places, changed: Attach, plain: Attach) -> Tensor:
    """The same with two forwards."""
    made = []
    for x, t in places:
        _, null = pipe.encode_prompt([""] * len(x), "cpu", 1, True)
        outputs = []
        for way in (changed, plain):
            with way():
                outputs.append(_asked(pipe, x, t, null))
        made.append(outputs[0] - outputs[1])
    return torch.cat(made)


def _asked(pipe: Any, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
    output: Tensor = pipe.unet(x.to(pipe.unet.dtype), t, text).sample
    return output.float()


def _with(unet: nn.Module, weights: Mapping[str, Tensor]) -> Attach:
    """The network with these weights."""

    @contextmanager
    def way() -> Iterator[None]:
        own = {name: (parameter, parameter.data) for name, parameter in unet.named_parameters()}
        try:
            for name, (parameter, _) in own.items():
                parameter.data = weights[name]
            yield
        finally:
            for parameter, data in own.values():
                parameter.data = data

    return way


def _in_float32(unet: nn.Module, exact: nn.Module) -> Attach:
    """Each layer with weights of its own computed by its twin in float32, and rounded."""
    twins = dict(exact.named_modules())

    @contextmanager
    def way() -> Iterator[None]:
        with ExitStack() as undo:
            for name, layer in unet.named_modules():
                if not any(True for _ in layer.children()) and any(True for _ in layer.parameters()):
                    replace_forward(undo, layer, _rounding(twins[name]))
            yield

    return way


def _rounding(twin: nn.Module) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        output: Tensor = twin(x.float())
        return output.to(x.dtype)

    return forward


def _lora(pipe: Any, base: Mapping[str, Tensor], drift: float) -> Attach:
    """The shipped LoRA on the negative rows, at the strength that has this drift."""

    @contextmanager
    def way() -> Iterator[None]:
        preference = demo().preference
        assert preference is not None
        load_lora(pipe, preference, "npo")
        try:
            layers = [layer for layer in pipe.unet.modules() if hasattr(layer, "get_delta_weight")]
            norm = math.hypot(*(float(layer.get_delta_weight("npo").float().norm()) for layer in layers))
            size = math.hypot(*(float(tensor.norm()) for tensor in base.values()))
            with NegativeAdapters.attach(pipe, {"npo": drift * size / norm}):
                yield
        finally:
            pipe.unload_lora_weights()

    return way


@torch.no_grad()
def _places(rows: int, levels: list[int]) -> Places:
    """Of guided trajectories of the model in float32, in ten steps, the first one done at level 1."""
    shipped = demo()
    pipe, seen = shipped.pipeline(), []

    def keep(_pipe: Any, _step: int, t: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(given["latents"])
        return given

    pipe.set_progress_bar_config(disable=True)
    prompts = list(shipped.captions()[:rows])
    generators = [torch.Generator().manual_seed(seed) for seed in range(rows)]
    pipe(
        prompts,
        num_inference_steps=10,
        guidance_scale=2.0,
        generator=generators,
        output_type="latent",
        callback_on_step_end=keep,
    )
    times = pipe.scheduler.timesteps
    return [(seen[level - 1], times[level]) for level in levels]
