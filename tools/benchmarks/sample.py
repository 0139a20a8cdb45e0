"""What a denoising step costs with negative weights, beside plain guidance and what else gives the same picture."""

import copy
import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import click
import torch
from benchmarks.common import command, machine, tensor_bytes, threads_option, use_threads, write
from benchmarks.counting import counted
from benchmarks.update import SHAPES, Bench, wait_for_device
from diffusers import DiffusionPipeline
from peft import LoraConfig
from torch import Tensor
from tqdm import tqdm

from selfnpo_core.adapters import NegativeAdapters, NegativeDelta, NegativeLayers
from selfnpo_core.commands.train import base_dtype
from selfnpo_core.system.devices import DTYPES
from selfnpo_core.system.memory import peak_tensor_bytes
from selfnpo_core.training.lora_student import lora_target_modules

PLAIN, ADAPTER = "plain", "npo"
Attach = Callable[[], AbstractContextManager[object]]


@click.command("sample")
@click.option("--shape", type=click.Choice(list(SHAPES)), default="demo", show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Of the recipe: height, width, frames.")
@click.option("--samples", default=2, show_default=True, help="Drawn together, of one prompt.")
@click.option("--steps", default=6, show_default=True, help="Of a call; the first is not timed.")
@click.option(
    "--repeats", default=5, show_default=True, help="Calls of each arm, in turn with plain guidance; medians."
)
@click.option(
    "--work", type=click.Path(path_type=Path), default=Path("build/benchmark"), help="Random models lie there."
)
@click.option("--json", "output", type=click.Path(path_type=Path), help="In the place of docs/results/performance.")
@threads_option
def sample(
    shape: str,
    overrides: tuple[str, ...],
    samples: int,
    steps: int,
    repeats: int,
    work: Path,
    output: Path | None,
    threads: int,
) -> None:
    """Seconds and bytes of a denoising step with negative weights, as ratios to plain guidance and to other ways.

    The other ways give the same picture: two whole models, one model asked twice, and one whose weights are patched
    before the negative forward and restored after it.
    """
    use_threads(threads)
    bench = Bench(SHAPES[shape], overrides, work / shape)
    pipe = Pipe(bench, samples, steps)
    rows = {name: _row(pipe, attach, repeats) for name, attach in tqdm(pipe.arms().items(), unit="arm")}
    plain, lora = rows[PLAIN], rows["negative_lora"]
    figures = {
        "schema": 1,
        "command": command(),
        "machine": f"{machine()}, {DTYPES[base_dtype(bench.recipe)]}",
        "model": bench.about(),
        "rows a step": 2 * samples,
        "unit": "of plain guidance in turn: time of a step; bytes held at the peak of a call, weights included",
        "arms": rows,
        "ratios": {
            "negative_lora": lora["time"],
            "full_offset": rows["offset, swap"]["time"],
            **{name: round(rows[name]["time"] / lora["time"], 3) for name in ("two_models", "two_forwards", "patched")},
        },
        "memory ratios": {name: round(row["bytes"] / plain["bytes"], 3) for name, row in rows.items()},
    }
    write(output or Path("docs/results/performance") / f"sample-{shape}.json", figures)


class Pipe:
    """A stock pipeline with a random LoRA in it, inactive, and a random offset of all weights."""

    def __init__(self, bench: Bench, samples: int, steps: int):
        self.samples, self.steps = samples, steps
        device = "cuda" if torch.cuda.is_available() and bench.recipe.device != "cpu" else "cpu"
        self.pipe: Any = DiffusionPipeline.from_pretrained(
            bench.base.source.location, torch_dtype=DTYPES[base_dtype(bench.recipe)]
        ).to(device)
        self.pipe.set_progress_bar_config(disable=True)
        size = {key: getattr(bench.recipe, key) for key in ("height", "width", "frames")}
        size["num_frames"] = size.pop("frames")
        self.size = {key: value for key, value in size.items() if value is not None}
        self.name = "unet" if getattr(self.pipe, "unet", None) is not None else "transformer"
        self.denoiser: Any = getattr(self.pipe, self.name)
        torch.manual_seed(0)
        self._add_lora(bench)
        matrices = {name: p for name, p in self.denoiser.named_parameters() if p.dim() > 1 and "lora" not in name}
        self.offset = {
            n.replace(".base_layer.", "."): 0.01 * p.std() * torch.randn_like(p) for n, p in matrices.items()
        }
        self.product = self._product()

    def _add_lora(self, bench: Bench) -> None:
        backbone = bench.backbone()
        targets = lora_target_modules(backbone, bench.recipe.targets)
        self.denoiser.add_adapter(LoraConfig(r=bench.recipe.rank, target_modules=targets), ADAPTER)
        for name, weight in self.denoiser.named_parameters():
            if ".lora_" in name:
                weight.data = (1e-2 * torch.randn_like(weight)).to(self.denoiser.dtype)
        self.denoiser.disable_adapters()
        self.denoiser.requires_grad_(False)

    def _product(self) -> dict[str, Tensor]:
        """What the LoRA adds to each weight; of two models' and a patched one's."""
        found: dict[str, Tensor] = {}
        for name, layer in self.denoiser.named_modules():
            if hasattr(layer, "lora_A") and ADAPTER in layer.lora_A:
                found[f"{name}.base_layer.weight"] = layer.get_delta_weight(ADAPTER).detach()
        return found

    def arms(self) -> dict[str, Attach]:
        pipe, offset = self.pipe, self.offset
        return {
            PLAIN: nullcontext,
            "negative_lora": lambda: NegativeAdapters.attach(pipe, {ADAPTER: 1.0}),
            "offset, swap": lambda: NegativeDelta.attach(pipe, offset),
            "offset, bf16": lambda: NegativeLayers.attach(pipe, offset, store="bf16"),
            "offset, int8": lambda: NegativeLayers.attach(pipe, offset, store="int8"),
            "two_models": self._two_models,
            "two_forwards": self._two_forwards,
            "patched": self._patched,
        }

    def call(self, steps: int | None = None) -> float:
        """Seconds of a step, the first left out."""
        times: list[float] = []

        def note(_: Any, __: int, ___: Any, values: dict[str, Any]) -> dict[str, Any]:
            wait_for_device()
            times.append(perf_counter())
            return values

        self.pipe(
            ["a thing"] * self.samples,
            num_inference_steps=steps or self.steps,
            guidance_scale=3.0,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
            callback_on_step_end=note,
            **self.size,
        )
        return (times[-1] - times[0]) / max(1, len(times) - 1)

    @contextmanager
    def _two_models(self) -> Iterator[None]:
        other = copy.deepcopy(self.denoiser)
        for name, added in self.product.items():
            other.get_parameter(name).add_(added)
        with self._halves(lambda forward, negative: other if negative else forward):
            yield

    @contextmanager
    def _two_forwards(self) -> Iterator[None]:
        def choose(forward: Callable[..., Any], negative: bool) -> Callable[..., Any]:
            (self.denoiser.enable_adapters if negative else self.denoiser.disable_adapters)()
            return forward

        with self._halves(choose):
            yield
        self.denoiser.disable_adapters()

    @contextmanager
    def _patched(self) -> Iterator[None]:
        def choose(forward: Callable[..., Any], negative: bool) -> Callable[..., Any]:
            for name, added in self.product.items():
                weight = self.denoiser.get_parameter(name)
                weight.add_(added) if negative else weight.copy_(kept[name])
            return forward

        kept = {name: self.denoiser.get_parameter(name).clone() for name in self.product}
        with self._halves(choose):
            yield

    @contextmanager
    def _halves(self, choose: Callable[[Callable[..., Any], bool], Callable[..., Any]]) -> Iterator[None]:
        """The denoiser called once a branch, each by what `choose` gives; the batch is [negative, positive]."""
        forward = self.denoiser.forward

        def both(*args: Any, **kwargs: Any) -> tuple[Tensor]:
            parts = [
                choose(forward, negative)(*(half(v) for v in args), **{k: half(v) for k, v in kwargs.items()})[0]
                for negative, half in ((True, self._first), (False, self._second))
            ]
            return (torch.cat(parts),)

        self.denoiser.forward = both
        try:
            with torch.no_grad():
                yield
        finally:
            del self.denoiser.forward

    def _first(self, value: Any) -> Any:
        return value[: self.samples] if self._is_batch(value) else value

    def _second(self, value: Any) -> Any:
        return value[self.samples :] if self._is_batch(value) else value

    def _is_batch(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.dim() > 0 and len(value) == 2 * self.samples


def _row(pipe: Pipe, attach: Attach, repeats: int) -> dict[str, Any]:
    """One way, in turn with plain guidance, which is timed before and after each of its calls."""
    plain, own = [], []
    gc.collect()
    with attach():
        held = tensor_bytes()
        found = counted(lambda: pipe.call(steps=1), [pipe.denoiser])
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            pipe.call(steps=1)
            peak = torch.cuda.max_memory_allocated()
        else:
            peak = held + peak_tensor_bytes(lambda: pipe.call(steps=1))
        pipe.call(steps=1)
    for _ in range(repeats):
        plain.append(pipe.call())
        with ExitStack() as stack:
            stack.enter_context(attach())
            own.append(pipe.call())
        plain.append(pipe.call())
    return {
        "time": round(median(own) / median(plain), 3),
        "each call's": [round(seconds / median(plain), 3) for seconds in own],
        "seconds a step": round(median(own), 4),
        "bytes": peak,
        "flops": found.flops,
        "operations": found.operations,
    }
