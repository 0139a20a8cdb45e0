"""The updates that are compared: ours, the published algorithm, full simulation, and a plain LoRA's. Each on its own
copy of the model, with as many rows."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import diffusers
import torch
from peft import LoraConfig
from torch import Tensor, nn

from selfnpo_core.denoise import add_noise, ddim_step, renoise
from selfnpo_core.ema import ema_update
from selfnpo_core.guidance import guide
from selfnpo_core.models.backbone import Backbone
from selfnpo_core.objective import tdft_loss
from selfnpo_core.prediction import Estimate, from_estimate, to_estimate
from selfnpo_core.training.accelerators import AMP, make_accelerator, make_optimizer
from selfnpo_core.training.engine import Engine
from selfnpo_core.training.lora_student import lora_target_modules
from selfnpo_core.training.measuring import Noise
from selfnpo_core.training.recipe import Recipe
from selfnpo_core.training.samples import SamplePlan

GRID, TRUNCATION = 25, 5
"""Of the published code: the teacher's grid of timesteps, and how many of its steps it takes before its estimate."""


class Updates(Protocol):
    """One arm. networks: all that forwards go through. drawn: samples that an update uses up, on average."""

    networks: list[nn.Module]
    drawn: float

    def update(self) -> None: ...

    def draw(self, count: int) -> object: ...

    def close(self) -> None: ...


class Ours:
    """An engine's updates, of whatever recipe. Finished samples are noise here; drawing them is timed apart."""

    def __init__(self, backbone: Backbone, recipe: Recipe, prompts: Sequence[str]):
        self.backbone, self.prompts = backbone, list(prompts)
        accelerator = make_accelerator(recipe)
        backbone.use_attention(recipe.attention, AMP[recipe.mixed_precision])
        backbone.embed(self.prompts)
        self.plan = SamplePlan.of(backbone, recipe, len(prompts)) if recipe.rollout == "samples" else None
        self.drawn = self.plan.count * recipe.rounds / recipe.steps if self.plan is not None else 0.0
        samples = None if self.plan is None else Noise(self.plan)
        self.engine = Engine(backbone, recipe, len(prompts), accelerator, samples)
        self.engine.warm_up()
        self._updates = self.engine.updates()
        self.networks = self._networks()

    def _networks(self) -> list[nn.Module]:
        found: list[nn.Module] = []
        for role in ("student", "teacher", "base"):
            with self.engine.student.role(role):
                network = self.engine.accelerator.unwrap_model(self.backbone.denoiser)
            found += [network] if all(network is not other for other in found) else []
        return found

    def update(self) -> None:
        next(self._updates)

    def draw(self, count: int) -> object:
        assert self.plan is not None
        backbone: Any = self.backbone
        texts = [self.prompts[i % len(self.prompts)] for i in range(count)]
        how = {"guidance_scale": self.plan.guidance_scale, "steps": self.plan.steps, "negative": None}
        with self.engine.student.role("base"):
            return backbone.draw_latents(texts, list(range(count)), **how)

    def close(self) -> None:
        self.engine.close()


class _Loop:
    """What the two loops below have in common: rows in parts, one optimizer, autocast as the recipe says."""

    drawn = 0.0

    def __init__(self, backbone: Backbone, recipe: Recipe, prompts: Sequence[str]):
        self.backbone, self.recipe, self.count = backbone, recipe, len(prompts)
        self.device = make_accelerator(recipe).device
        self.amp = AMP[recipe.mixed_precision]
        backbone.use_attention(recipe.attention, self.amp)
        backbone.embed(list(prompts))
        self.random = torch.Generator().manual_seed(recipe.seed)

    def _step(self, loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, weights: Sequence[Tensor]) -> None:
        for _ in range(self.recipe.grad_accumulation):
            (loss() / self.recipe.grad_accumulation).backward()  # type: ignore[no-untyped-call]
        if self.recipe.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(weights, self.recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    def _rows(self) -> tuple[Tensor, Tensor]:
        """Noise: (B, *S), and prompts: (B,)."""
        rows = self.recipe.batch_size
        noise = torch.randn((rows, *self.backbone.latent_shape), generator=self.random)
        return noise.to(self.device), torch.randint(self.count, (rows,), generator=self.random).to(self.device)

    def _estimate(self, x_t: Tensor, t: Tensor, prompt: Tensor) -> Estimate:
        with torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None):
            output = self.backbone.predict(x_t, t, prompt)
        level = self.backbone.schedule.at(t, like=x_t)
        return to_estimate(output.float(), x_t, level, self.backbone.prediction_type)

    def draw(self, count: int) -> object:
        raise NotImplementedError

    def close(self) -> None:
        self.backbone.denoiser.to("cpu")


class PlainLora(_Loop):
    """A supervised LoRA, as every trainer has it: stored latents and embeddings, noise, one forward, one backward."""

    def __init__(self, backbone: Backbone, recipe: Recipe, prompts: Sequence[str]):
        super().__init__(backbone, recipe, prompts)
        network: Any = backbone.denoiser.requires_grad_(False).to(self.device)
        targets = lora_target_modules(backbone, recipe.targets)
        network.add_adapter(LoraConfig(r=recipe.rank, lora_alpha=int(recipe.alpha), target_modules=targets), "plain")
        self._weights = [weight for weight in network.parameters() if weight.requires_grad]
        for weight in self._weights:
            weight.data = weight.data.float()
        if recipe.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        self.networks: list[nn.Module] = [network]
        self._optimizer = make_optimizer(self._weights, recipe)

    def update(self) -> None:
        self._step(self._loss, self._optimizer, self._weights)

    def _loss(self) -> Tensor:
        x0, prompt = self._rows()
        noise = torch.randn(x0.shape, generator=self.random).to(x0)
        schedule, kind = self.backbone.schedule, self.backbone.prediction_type
        t = torch.randint(int(schedule.max_timestep), (len(x0),), generator=self.random).to(self.device)
        level = schedule.at(t, like=x0)
        x_t = add_noise(x0, noise, level)
        output = from_estimate(self._estimate(x_t, t, prompt), x_t, level, kind)
        return (output - from_estimate(Estimate(x0, noise), x_t, level, kind)).square().mean()

    def close(self) -> None:
        network: Any = self.backbone.denoiser
        network.unload_lora()
        super().close()


class Published(_Loop):
    """The published algorithm (github.com/G-U-N/Diffusion-NPO, folder Self-NPO): a stored picture is encoded and noised
    to a random point of a grid, five steps of the teacher and its estimate follow, both branches each; student and
    teacher are two models, and all weights of one are trained."""

    def __init__(self, backbone: Backbone, recipe: Recipe, prompts: Sequence[str], vae: nn.Module):
        super().__init__(backbone, recipe, prompts)
        self._vae = vae.to(self.device).requires_grad_(False)
        self._student = backbone.denoiser.to(self.device).float().requires_grad_(True)
        self._teacher = copy.deepcopy(self._student).requires_grad_(False)
        if recipe.gradient_checkpointing:
            self._student.enable_gradient_checkpointing()  # type: ignore[operator]
        self.networks: list[nn.Module] = [self._student, self._teacher]
        self._weights = list(self._student.parameters())
        self._optimizer = make_optimizer(self._weights, recipe)
        self._grid = backbone.schedule.grid(GRID).to(self.device)

    def update(self) -> None:
        self._step(self._loss, self._optimizer, self._weights)
        ema_update(list(self._teacher.parameters()), self._weights, self.recipe.ema_decay)

    def _loss(self) -> Tensor:
        at, (noise, prompt) = self.backbone.schedule.at, self._rows()
        with torch.no_grad():
            x0 = self._encoded(len(noise))
            first = torch.randint(self.backbone.schedule.first_trained(self._grid), GRID - TRUNCATION, (len(x0),))
            t = self._grid[first]
            x = add_noise(x0, noise, at(t, like=x0))
            self.backbone.denoiser = self._teacher
            for k in range(1, TRUNCATION + 1):
                t = self._grid[first + k]
                x = ddim_step(self._guided(x, self._grid[first + k - 1], prompt), at(t, like=x))
            target = self._guided(x, t, prompt).x0
        self.backbone.denoiser = self._student
        s = self.backbone.schedule.draw_noisier(t.cpu(), self.random).to(t)
        fresh = torch.randn(x.shape, generator=self.random).to(x)
        x_s = renoise(x, fresh, at(t, like=x), at(s, like=x))
        return tdft_loss(self._estimate(x_s, s, prompt).x0, target)

    def _guided(self, x: Tensor, t: Tensor, prompt: Tensor) -> Estimate:
        null = torch.full_like(prompt, -1)
        negative, positive = (self._estimate(x, t, which) for which in (null, prompt))
        return guide(negative, positive, 1 + self.recipe.teacher_guidance)

    def _encoded(self, rows: int) -> Tensor:
        """Latents of pictures or clips that could be any; a row at a time, as clips need it."""
        vae: Any = self._vae
        drawn: list[Tensor] = []
        for _ in range(rows):
            pixels = torch.rand((1, *pixels_of(self.backbone.latent_shape, vae)), generator=self.random)
            latents = vae.encode((2 * pixels - 1).to(next(vae.parameters()))).latent_dist.sample().float()
            drawn.append(latents.movedim(1, 2) if latents.dim() == 5 else latents)
        return torch.cat(drawn) * float(vae.config.scaling_factor)

    def close(self) -> None:
        self.backbone.denoiser = self._student
        super().close()


def pixels_of(latent_shape: Sequence[int], vae: Any) -> tuple[int, ...]:
    """(3, height, width) or (3, frames, height, width) of what has latents of this shape."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    sides = tuple(factor * side for side in latent_shape[-2:])
    if len(latent_shape) == 3:
        return (3, *sides)
    return (3, (latent_shape[0] - 1) * int(vae.config.temporal_compression_ratio) + 1, *sides)


def load_vae(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The autoencoder of a diffusers folder."""
    name = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))["_class_name"]
    vae: nn.Module = getattr(diffusers, name).from_pretrained(folder / "vae", torch_dtype=dtype)
    return vae.eval()
