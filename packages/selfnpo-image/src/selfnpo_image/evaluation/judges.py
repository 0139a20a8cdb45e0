"""Judges of pictures, trained on what people prefer. Each gives one number a picture; more is better.

PickScore    exp(logit scale)·cos(text, image) of a CLIP ViT-H/14 (2305.01569)
HPSv2.1      100·cos(text, image) of another (2306.09341); papers give the cosine in hundredths
ImageReward  (MLP(BLIP's first text token, which has seen the picture) − mean)/deviation (2304.05977)
aesthetic    MLP(image/‖image‖) of CLIP ViT-L/14 (LAION's improved predictor, sac+logos+ava1, linear MSE)
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from selfnpo_core.errors import InputError
from selfnpo_core.evaluation.clip import (
    CONFIG,
    FILES,
    PIXELS,
    PREPROCESSING,
    REPO,
    TOKENIZER,
    Clip,
    processor,
    readable,
    reader,
)
from selfnpo_core.evaluation.networks import Look, Network
from selfnpo_core.evaluation.weights import Wanted, library, pick, read_weights
from selfnpo_core.sampling.medium import Frames
from selfnpo_image.evaluation.conversion import blip_tensors, clip_tensors

VIT_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
PICKSCORE, HPS, IMAGEREWARD, BERT = (
    "yuvalkirstain/PickScore_v1",
    "xswu/HPSv2",
    "THUDM/ImageReward",
    "google-bert/bert-base-uncased",
)
HPS_FILE = "HPS_v2.1_compressed.pt|HPS_v2.1_compressed.safetensors"
IMAGEREWARD_FILE = "ImageReward.pt|ImageReward.safetensors"
IMAGEREWARD_MEAN, IMAGEREWARD_STD = 0.16717362830052426, 1.0333394966054072
"""Of its scores, as published with the weights."""
IMAGEREWARD_WORDS = 35
"""Tokens of a prompt that it reads."""
AESTHETIC = "sac+logos+ava1-l14-linearMSE"
AESTHETIC_FILE = f"{AESTHETIC}.pth|{AESTHETIC}.safetensors"
AESTHETIC_SOURCE = (
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
    f"{AESTHETIC}.pth into WEIGHTS/improved-aesthetic-predictor/"
)


def pickscore() -> Network:
    def load(places: Sequence[Path], device: torch.device) -> Look:
        model = Clip.of(places[0], places[1], device)
        scale = model.model.logit_scale.exp()
        return lambda samples, prompts: scale * model.agreement(samples, prompts)[0][:, None]

    return Network(
        name="pickscore",
        columns=("pickscore",),
        asks=True,
        model=PICKSCORE,
        preprocessing=PREPROCESSING,
        library=library("transformers"),
        wanted=(
            Wanted(repo=PICKSCORE, files=(CONFIG, "model.safetensors")),
            Wanted(repo=VIT_H, files=(PIXELS, *TOKENIZER)),
        ),
        load=load,
        reads=lambda places: reader(places[0], places[1]),
    )


def hps() -> Network:
    def load(places: Sequence[Path], device: torch.device) -> Look:
        model = _hps_clip(places, device)
        side = model.pictures.crop_size["height"]

        def look(samples: Sequence[Frames], prompts: Sequence[str]) -> Tensor:
            whole = [np.stack([padded(frame, side) for frame in frames]) for frames in samples]
            return 100 * model.agreement(whole, prompts)[0][:, None]

        return look

    return Network(
        name="hpsv2.1",
        columns=("hpsv2.1",),
        asks=True,
        model=f"{HPS}, v2.1",
        preprocessing="longer side to the model's size (PIL, bicubic), black around, mean and deviation of its config",
        library=library("transformers"),
        wanted=(
            Wanted(repo=HPS, files=(HPS_FILE,)),
            Wanted(repo=VIT_H, files=(CONFIG, PIXELS, *TOKENIZER)),
        ),
        load=load,
        reads=lambda places: reader(places[1], places[1]),
    )


def _hps_clip(places: Sequence[Path], device: torch.device) -> Clip:
    from transformers import CLIPConfig, CLIPModel

    file = _weights(places[0], HPS_FILE)
    with readable(places[1]):
        model, parts = CLIPModel(CLIPConfig.from_pretrained(places[1])), processor(places[1])
    _fill(model, clip_tensors(read_weights(file)), file)
    return Clip(model.to(device), *parts)


def padded(picture: Frames, side: int) -> Frames:
    """(H, W, 3) → (side, side, 3): the longer side becomes `side`, what is left is black."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = round(width * scale), round(height * scale)
    canvas = Image.new("RGB", (side, side))
    resized = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
    canvas.paste(resized, ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(canvas)


def imagereward() -> Network:
    return Network(
        name="imagereward",
        columns=("imagereward",),
        asks=True,
        model=IMAGEREWARD,
        preprocessing="shorter side to 224 (PIL, bicubic), centre crop, CLIP's mean and deviation; 35 tokens",
        library=library("transformers"),
        wanted=(Wanted(repo=IMAGEREWARD, files=(IMAGEREWARD_FILE,)), Wanted(repo=BERT, files=TOKENIZER)),
        load=_imagereward,
        reads=_imagereward_reader,
    )


def _imagereward_reader(places: Sequence[Path]) -> tuple[Any, int]:
    from transformers import AutoTokenizer

    with readable(places[1]):
        return AutoTokenizer.from_pretrained(places[1]), IMAGEREWARD_WORDS


def _imagereward(places: Sequence[Path], device: torch.device) -> Look:
    from transformers import AutoTokenizer, CLIPImageProcessorPil
    from transformers.models.blip.modeling_blip import BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    file = _weights(places[0], IMAGEREWARD_FILE)
    state = read_weights(file)
    vision, text, vision_tensors, text_tensors = blip_tensors(state, file)
    eyes, reader = BlipVisionModel(vision), BlipTextModel(text, add_pooling_layer=False)
    _fill(eyes, vision_tensors, file)
    _fill(reader, text_tensors, file)
    eyes, reader = eyes.eval().to(device), reader.eval().to(device)
    with readable(places[1]):
        tokenizer = AutoTokenizer.from_pretrained(places[1])
    side, head = vision.image_size, linear_head(state, "mlp.layers.", file, device)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})

    def look(samples: Sequence[Frames], prompts: Sequence[str]) -> Tensor:
        frames = [frame for each in samples for frame in each]
        pixels = pictures(images=frames, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
        seen = eyes(pixel_values=pixels.to(device)).last_hidden_state
        texts = [prompt for each, prompt in zip(samples, prompts, strict=True) for _ in each]
        words = tokenizer(
            texts, padding="max_length", truncation=True, max_length=IMAGEREWARD_WORDS, return_tensors="pt"
        ).to(device)
        read = reader(
            input_ids=words["input_ids"],
            attention_mask=words["attention_mask"],
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=device),
        ).last_hidden_state[:, 0]
        rewards = (head(read) - IMAGEREWARD_MEAN) / IMAGEREWARD_STD
        return _frame_means(rewards, samples)

    return look


def aesthetic() -> Network:
    def load(places: Sequence[Path], device: torch.device) -> Look:
        model, file = Clip.of(places[1], places[1], device), _weights(places[0], AESTHETIC_FILE)
        head = linear_head(read_weights(file), "layers.", file, device)

        def look(samples: Sequence[Frames], prompts: Sequence[str]) -> Tensor:
            return _frame_means(head(model.images([frame for frames in samples for frame in frames])), samples)

        return look

    return Network(
        name="aesthetic",
        columns=("aesthetic",),
        model=f"improved-aesthetic-predictor {AESTHETIC} on {REPO}",
        preprocessing=PREPROCESSING,
        library=library("transformers"),
        wanted=(
            Wanted(
                repo="improved-aesthetic-predictor",
                files=(AESTHETIC_FILE,),
                hub=False,
                elsewhere=AESTHETIC_SOURCE,
            ),
            Wanted(repo=REPO, files=FILES),
        ),
        load=load,
    )


def linear_head(
    state: Mapping[str, Tensor], prefix: str, file: Path, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Linear layers one after another with nothing between but dropout, PREFIX0.weight, PREFIX2.weight, …:
    (n, d) → (n, 1)."""
    numbers = sorted(
        int(name[len(prefix) :].split(".")[0]) for name in state if name.startswith(prefix) and "weight" in name
    )
    if not numbers or len(state[f"{prefix}{numbers[-1]}.weight"]) != 1:
        raise InputError(f"{file} has no layers {prefix}N.weight that end in one number: get it again")
    layers = [tuple(state[f"{prefix}{n}.{part}"].float().to(device) for part in ("weight", "bias")) for n in numbers]

    def head(x: Tensor) -> Tensor:
        for weight, bias in layers:
            x = F.linear(x, weight, bias)
        return x

    return head


def _weights(place: Path, names: str) -> Path:
    file = pick(place, names)
    assert file is not None
    return file


def _fill(module: Any, tensors: Mapping[str, Tensor], file: Path) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:160]
        raise InputError(f"{file} does not fit its network ({detail}): get it again") from None


def _frame_means(scores: Tensor, samples: Sequence[Frames]) -> Tensor:
    """(all frames, 1) → (n, 1)."""
    return torch.stack([part.mean(dim=0) for part in scores.split([len(frames) for frames in samples])])
