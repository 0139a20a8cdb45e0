"""CLIP (2103.00020) as a judge: how well pictures fit their prompts, and how far consecutive frames agree.

clip_score = mean over frames of 100·cos(image, text), as torchmetrics has it (2104.08718 has another factor)
frame_consistency = mean over consecutive frames of cos(image_f, image_{f+1}), as VBench's and others' CLIP-Temp
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from selfnpo_core.errors import InputError
from selfnpo_core.evaluation.networks import Look, Network
from selfnpo_core.evaluation.weights import Wanted, library
from selfnpo_core.models.loading import quiet
from selfnpo_core.sampling.medium import Frames

REPO = "openai/clip-vit-large-patch14"
CONFIG, PIXELS = "config.json", "preprocessor_config.json|processor_config.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
FILES = (CONFIG, "model.safetensors", PIXELS, *TOKENIZER)
PREPROCESSING = "shorter side to the model's size (PIL, bicubic), centre crop, mean and deviation of the model's config"
_AT_ONCE = 64
"""Frames."""


class Clip:
    """A CLIPModel with its preparation of pictures and texts, both normalised to unit length."""

    def __init__(self, model: Any, pictures: Any, tokenizer: Any):
        self.model, self.pictures, self.tokenizer = model.eval().requires_grad_(False), pictures, tokenizer

    @classmethod
    def of(cls, model_place: Path, place: Path, device: torch.device) -> Clip:
        """The model and its processor, from two folders or one."""
        from transformers import CLIPModel

        model = whole(CLIPModel, model_place)
        with readable(place):
            return cls(model.to(device), *processor(place))

    def images(self, frames: Sequence[Frames]) -> Tensor:
        """Frames (H, W, 3) uint8 → (n, d)."""
        parts = []
        for start in range(0, len(frames), _AT_ONCE):
            some = list(frames[start : start + _AT_ONCE])
            pixels = self.pictures(images=some, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
            parts.append(pooled(self.model.get_image_features(pixel_values=pixels.to(self.model.device))))
        return F.normalize(torch.cat(parts), dim=-1)

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """(n, d). Long prompts are cut where the model's positions end."""
        words = self.tokenizer(
            list(prompts),
            padding=True,
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.model.device)
        asked = {"input_ids": words["input_ids"], "attention_mask": words["attention_mask"]}
        return F.normalize(pooled(self.model.get_text_features(**asked)), dim=-1)

    def agreement(self, samples: Sequence[Frames], prompts: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
        """cos(image, text) averaged over frames (n,), and the embeddings (F, d) of each sample's frames."""
        embedded = self.images([frame for frames in samples for frame in frames])
        each = list(embedded.split([len(frames) for frames in samples]))
        texts = self.texts(prompts)
        return torch.stack([(some @ text).mean() for some, text in zip(each, texts, strict=True)]), each


def processor(place: Path) -> tuple[Any, Any]:
    """The preparation of pictures and the tokenizer. PIL resizes: torchvision, where it is there, does so otherwise."""
    from transformers import AutoTokenizer, CLIPImageProcessorPil

    return CLIPImageProcessorPil.from_pretrained(place), AutoTokenizer.from_pretrained(place)


def reader(model_place: Path, place: Path) -> tuple[Any, int]:
    """The tokenizer, and how many tokens of a prompt the model's positions reach."""
    from transformers import AutoTokenizer, CLIPConfig

    with readable(place):
        limit = CLIPConfig.from_pretrained(model_place).text_config.max_position_embeddings
        return AutoTokenizer.from_pretrained(place), limit


def pooled(output: Any) -> Tensor:
    """The projected embeddings: older transformers give them bare."""
    return output if isinstance(output, Tensor) else output.pooler_output


def whole(kind: Any, place: Path) -> Any:
    """A model of transformers with all its weights: those that a file lacks would silently be random numbers."""
    with readable(place):
        model, loaded = kind.from_pretrained(place, use_safetensors=True, output_loading_info=True)
    if lacking := sorted({*loaded["missing_keys"], *(name for name, *_ in loaded["mismatched_keys"])}):
        raise InputError(f"{place} lacks weights of {kind.__name__} ({lacking[0]}, …): get it again")
    return model


@contextmanager
def readable(place: Path) -> Iterator[None]:
    """An error of transformers over a folder that it cannot load becomes one line."""
    try:
        with quiet():
            yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        detail = " ".join(str(error).split())[:120]
        raise InputError(f"{place} cannot be loaded ({detail}): get it again") from error


def clip(repo: str = REPO) -> Network:
    """Columns clip_score and frame_consistency; of a single frame the latter is 1."""

    def load(places: Sequence[Path], device: torch.device) -> Look:
        return clip_look(Clip.of(places[0], places[0], device))

    return Network(
        name="clip",
        columns=("clip_score", "frame_consistency"),
        asks=True,
        model=repo,
        preprocessing=PREPROCESSING,
        library=library("transformers"),
        wanted=(Wanted(repo=repo, files=FILES),),
        load=load,
        reads=lambda places: reader(places[0], places[0]),
        batch=8,
    )


def clip_look(model: Clip) -> Look:
    def look(samples: Sequence[Frames], prompts: Sequence[str]) -> Tensor:
        cosines, frames = model.agreement(samples, prompts)
        steady = torch.stack([(x[1:] * x[:-1]).sum(dim=1).mean() if len(x) > 1 else x.new_ones(()) for x in frames])
        return torch.stack([100 * cosines, steady], dim=1)

    return look
