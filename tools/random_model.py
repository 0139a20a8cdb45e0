"""A diffusers folder with a real architecture and random weights: to measure what real models take without one.

    python tools/random_model.py cogvideox-2b build/cogvideox-2b
    selfnpo-video train --model build/cogvideox-2b --config recipes/cogvideox-2b-lora.yaml --dry-run

Every component has the real one's class, size and dtype, text encoders and autoencoder included, so that memory and
time are a real model's; what it draws is noise. Tokenizers are made up: of the real size, but letter by letter, so that
prompts are longer. CogVideoX-5b takes 20 GB of disk.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import diffusers
import torch
import transformers

from selfnpo_core.commands.running import run
from selfnpo_core.errors import InputError
from selfnpo_core.system.files import write_json
from selfnpo_core.system.paths import check_folder
from selfnpo_image import single_file
from selfnpo_image.families import FAMILIES
from selfnpo_video import models as video
from selfnpo_video.wan import WAN

KINDS = {name: made.kind for name, made in FAMILIES.items()}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
T5_XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
"""google/t5-v1_1-xxl's config.json."""
COGVIDEOX_VAE = {"cogvideox-2b": 1.15258426}
"""AutoencoderKLCogVideoX's defaults are the published models', but for the factor of their latents; 0.7 elsewhere."""
Make = Callable[[], Any]


@click.command(help=__doc__)
@click.argument("name", metavar="NAME")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--blocks", type=click.IntRange(1), help="Of a transformer and its T5, so many; all else as it is.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), help="Default: that in which the model is published.")
@click.option("--seed", default=0, show_default=True)
def main(name: str, folder: Path, blocks: int | None, dtype: str | None, seed: int) -> None:
    parts, pipeline, known = recipe_of(name, blocks)
    check_folder(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: choose another folder")
    torch.manual_seed(seed)
    with default_dtype(DTYPES[dtype or known]):
        for part, make in parts.items():
            click.echo(f"{part} …")
            made = make()
            made.save_pretrained(folder / part, safe_serialization=True)
            pipeline[part] = [type(made).__module__.partition(".")[0], type(made).__name__]
            del made
    write_json(folder / "model_index.json", pipeline)
    click.echo(f"random weights of {name} are in {folder}")


def recipe_of(name: str, blocks: int | None) -> tuple[dict[str, Make], dict[str, Any], str]:
    """What makes each component, the beginning of model_index.json, and the dtype that the model is published in."""
    if name in video.KNOWN and video.KNOWN[name].hub_id is not None and not video.KNOWN[name].from_image:
        known = video.KNOWN[name]
        if known.family == "wan":
            return _wan(name, blocks), {"_class_name": "WanPipeline", **video.beside(name, "index")}, known.dtype
        return _cogvideox(name, blocks), {"_class_name": "CogVideoXPipeline"}, known.dtype
    if name in KINDS and KINDS[name].layout is not None:
        if blocks is not None:
            raise InputError(f"{name} is a UNet, which has no row of blocks: leave --blocks out")
        return _with_unet(name)
    names = [*(n for n, kind in KINDS.items() if kind.layout is not None)]
    names += [n for n, model in video.KNOWN.items() if model.hub_id is not None and not model.from_image]
    raise InputError(f"the architecture of '{name}' is not in this package: use {', '.join(names)}")


def _cogvideox(name: str, blocks: int | None) -> dict[str, Make]:
    own = {} if blocks is None else {"num_layers": blocks}
    factor = COGVIDEOX_VAE.get(name, 0.7)
    schedule = {"snr_shift_scale": 3.0 if name == "cogvideox-2b" else 1.0, "rescale_betas_zero_snr": True}
    return {
        "transformer": lambda: diffusers.CogVideoXTransformer3DModel(**{**video.architecture(name), **own}),
        "text_encoder": lambda: transformers.T5EncoderModel(transformers.T5Config(**{**T5_XXL, **own})),
        "vae": lambda: diffusers.AutoencoderKLCogVideoX(scaling_factor=factor),
        "tokenizer": _t5_tokenizer,
        "scheduler": lambda: diffusers.CogVideoXDDIMScheduler(
            **schedule,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            clip_sample=False,
            set_alpha_to_one=True,
        ),
    }


def _wan(name: str, blocks: int | None) -> dict[str, Make]:
    own = {} if blocks is None else {"num_layers": blocks}
    vae = dict(video.beside(name, "vae"))
    if "z_dim" in vae:  # what its latents are scaled by is in no table here
        vae |= {"latents_mean": [0.0] * vae["z_dim"], "latents_std": [1.0] * vae["z_dim"]}
    schedule = {**WAN.scheduler, **video.beside(name, "scheduler")}
    encoder = {**WAN.encoder_config, **own}
    return {
        "transformer": lambda: diffusers.WanTransformer3DModel(**{**video.architecture(name), **own}),
        "text_encoder": lambda: transformers.UMT5EncoderModel(transformers.UMT5Config(**encoder)),
        "vae": lambda: diffusers.AutoencoderKLWan(**vae),
        "tokenizer": lambda: _t5_tokenizer(256_000),
        "scheduler": lambda: diffusers.UniPCMultistepScheduler.from_config(schedule),
    }


def _with_unet(family: str) -> tuple[dict[str, Make], dict[str, Any], str]:
    """Of the configurations in the image package."""
    configs = dict(single_file.layout_of(KINDS[family]).configs)
    index = json.loads(json.dumps(configs["model_index.json"]))
    parts: dict[str, Make] = {}
    for part, (library, kind) in ((p, v) for p, v in index.items() if isinstance(v, list) and v[0]):
        if "Tokenizer" in kind:
            parts[part] = _clip_tokenizer
        elif library == "transformers":
            parts[part] = _clip(kind, configs[f"{part}/config.json"])
        else:
            file = "scheduler_config.json" if part == "scheduler" else "config.json"
            parts[part] = _of_config(getattr(diffusers, kind), configs[f"{part}/{file}"])
    return parts, {key: value for key, value in index.items() if key not in parts}, "fp16"


def _of_config(kind: Any, config: Mapping[str, Any]) -> Make:
    return lambda: kind.from_config(config)


def _clip(kind: str, config: Mapping[str, Any]) -> Make:
    return lambda: getattr(transformers, kind)(transformers.CLIPTextConfig(**config))


def _clip_tokenizer(size: int = 49408) -> Any:
    """Letters, their forms at the end of a word, the two marks, and words that nobody writes."""
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [f"unused{i}" for i in range(size - len(words) - 2)]
    vocab = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def _t5_tokenizer(size: int = 32000) -> Any:
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,.;:!?'\"-()"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -2.0) for letter in letters)]
    pieces += [(f"unused{i}", -20.0) for i in range(size - len(pieces))]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=100, model_max_length=226)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


if __name__ == "__main__":
    sys.exit(run(main, name="random_model.py"))
