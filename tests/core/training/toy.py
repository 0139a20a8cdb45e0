"""A model family small enough to train in milliseconds: 4×4×4 samples, a conv, two linear layers, epsilon."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from selfnpo_core import NULL, Estimate, NoiseSchedule, full_simulation, to_estimate
from selfnpo_core.models.backbone import NegativeWeights
from selfnpo_core.models.embeddings import EmbeddingsCache
from selfnpo_core.models.identity import weights_hash
from selfnpo_core.training import Recipe, build_recipe

SHAPE = (4, 4, 4)
PROMPTS = ["a red circle", "a blue square", "two green stars", "a small cross", "a large ring"]
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


class ToyNet(nn.Module):
    def __init__(self, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.to_q = nn.Linear(64 + 16 + 1, 48)
            self.to_out = nn.Linear(48, 64)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        hidden = self.conv(x).flatten(1)
        hidden = torch.cat([hidden, condition, t[:, None].to(x) / 1000], dim=1)
        return x * 0.9 + 0.1 * self.to_out(torch.nn.functional.silu(self.to_q(hidden))).reshape(x.shape)


class ToyBackbone:
    name, family, prediction_type = "toy/base", "toy", "epsilon"
    latent_shape: tuple[int, ...] = SHAPE
    bytes_per_prompt = 64
    sampling = 2.0, 3

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32):
        self.denoiser: nn.Module = ToyNet(seed)
        self.base_hash = weights_hash(self.denoiser)
        self.denoiser.to(dtype)
        self.dtype = dtype
        self.schedule = NoiseSchedule.from_scheduler(SCHEDULER)
        self.lora_targets: Mapping[str, Sequence[str] | str] = {
            "attention": ["to_q", "to_out"],
            "all": ["conv", "to_q", "to_out"],
        }
        self.table = torch.zeros(1, 16)
        self.drawn: list[tuple[float, Any]] = []
        self.parts_drawn = 0
        self.drawn_with: list[tuple[float, float]] = []
        """Of each part: the size of the offset on the negative branch, and its strength."""

    def embed(self, prompts: Sequence[str], cache: EmbeddingsCache | None = None) -> None:
        generator = torch.Generator().manual_seed(1)
        self.table = torch.randn((len(prompts) + 1, 16), generator=generator)
        self.table[NULL] = 0

    def predict(self, x_t: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        condition = self.table.to(x_t.device)[prompt]
        return self.denoiser(x_t.to(self.dtype), t, condition.to(self.dtype))

    def use_attention(self, name: str, amp: torch.dtype | None = None) -> None:
        assert name == "auto"

    def draw_samples(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        guidance_scale: float,
        steps: int,
        negative: NegativeWeights,
    ) -> list[Image.Image]:
        self.drawn.append((guidance_scale, negative if negative is None else type(negative)))
        pictures = []
        for seed in seeds:
            x = torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(seed))
            out = self.predict(x, torch.tensor([500]), torch.tensor([NULL])).float()
            grey = (out[0, 0].clamp(-2, 2) * 60 + 128).to(torch.uint8).numpy()
            pictures.append(Image.fromarray(grey).resize((32, 32)))
        return pictures

    def drawing_facts(self) -> Mapping[str, Any]:
        return {"dtype": str(self.dtype)}

    def draw_latents(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        guidance_scale: float,
        steps: int,
        negative: NegativeWeights = None,
        beta: float = 1.0,
    ) -> Tensor:
        """Deterministic steps from each seed's noise, as a pipeline makes them."""
        self.parts_drawn += 1
        offset = {} if negative is None else self._offset(negative)
        self.drawn_with.append((sum(float(tensor.detach().float().norm()) for tensor in offset.values()), beta))
        rows = torch.tensor([PROMPTS.index(prompt) for prompt in prompts])
        x = torch.stack([torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

        def denoise(x_t: Tensor, t: Tensor, prompt: Tensor) -> Estimate:
            output = self.predict(x_t, t, prompt).float()
            null = prompt == NULL
            if offset and null.any():
                output[null] = self._negative(x_t[null], t[null], {n: beta * d for n, d in offset.items()})
            return to_estimate(output, x_t, self.schedule.at(t, like=x_t), self.prediction_type)

        return full_simulation(denoise, self.schedule, self.schedule.grid(steps), x, rows, guidance_scale - 1)

    def _offset(self, negative: str | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What negative weights add to the base's, by the names of its parameters."""
        if not isinstance(negative, str):
            return negative
        layers = ((name, layer) for name, layer in self.denoiser.named_modules() if isinstance(layer, LoraLayer))
        return {f"{name}.base_layer.weight": layer.get_delta_weight(negative) for name, layer in layers}

    def _negative(self, x_t: Tensor, t: Tensor, offset: Mapping[str, Tensor]) -> Tensor:
        """The network under the null prompt, with the offset on its weights."""
        own = dict(self.denoiser.named_parameters())
        weights = {name: own[name] + change.to(own[name]) for name, change in offset.items()}
        condition = torch.zeros((len(x_t), 16), dtype=self.dtype)
        return torch.func.functional_call(self.denoiser, weights, (x_t.to(self.dtype), t, condition)).float()

    def save_lora(self, directory: Path, adapter: str) -> None:
        layers = get_peft_model_state_dict(self.denoiser, adapter_name=adapter)
        save_file({f"net.{name}": t for name, t in layers.items()}, directory / "pytorch_lora_weights.safetensors")


def toy_recipe(**changes: Any) -> Recipe:
    values = {
        "steps": 4,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "rank": 4,
        "grid_steps": 5,
        "pool_size": 40,
        "truncation_steps": 1,
        "checkpoint_every": 2,
        "max_drift": 10.0,
        "trackers": [],
        "device": "cpu",
        "samples_cache": None,
    }
    return build_recipe({**values, **changes})
