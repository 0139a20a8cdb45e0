"""From a base that was found to its stock pipeline on the CPU, to parts of it, and to LoRA files and back.

Weights are safetensors only and no remote code is run.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import list_repo_files, snapshot_download
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn
from transformers import T5Tokenizer

from selfnpo_core.errors import InputError
from selfnpo_core.models.cached import check_cached, incomplete, is_offline
from selfnpo_core.models.components import header_of, load_component, sketched_component, wanted_files
from selfnpo_core.models.embeddings import Encode, Encoder, tokenizer_facts
from selfnpo_core.models.headers import encoding_dtype, widest_dtype
from selfnpo_core.models.loading import one_line_errors, quiet
from selfnpo_core.models.sources import Source
from selfnpo_core.models.stated import settled
from selfnpo_core.models.vocabularies import check_tokenizer, limit_length
from selfnpo_core.system.files import read_json
from selfnpo_video.clips import set_kind
from selfnpo_video.kinds import PARTS, VideoBase, VideoKind, look, read_config

CONFIGS = ("model_index.json", "transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json")
_FILES = ("*.json", "*.safetensors", "*.model", "*.txt")


def fetched(source: Source, files: Sequence[str]) -> Path:
    """Folder with these files of a model on the hub, in the hub's own cache."""
    with quiet(), one_line_errors(source):
        folder = Path(snapshot_download(source.location, revision=source.revision, allow_patterns=list(files)))
        if is_offline() and (missing := [name for name in files if "*" not in name and not (folder / name).is_file()]):
            raise incomplete(source.location, missing, source.revision)
        return folder


def local(base: VideoBase) -> VideoBase:
    """The same model on this disk: one on the hub is fetched whole, and looked at again."""
    if base.source.kind != "hub":
        return base
    folder = fetched(base.source, _wanted(base.source))
    check_cached(base.source.location, folder, revision=base.source.revision)
    return look(replace(base.source, kind="folder", location=str(folder)), folder, [base.kind])


def _wanted(source: Source) -> Sequence[str]:
    """Files of a repository: one variant a component, or where they cannot be listed all that are of use."""
    try:
        return wanted_files(list_repo_files(source.location, revision=source.revision), PARTS, source.variant)
    except Exception:  # what cannot be listed cannot be fetched either, and that says why
        return _FILES


def load_pipeline(base: VideoBase, *, dtype: torch.dtype = torch.float32, **components: Any) -> Any:
    """The stock pipeline of a model, on the CPU. Components that are given (`transformer=…`) are not read from disk."""
    base = local(base)
    with quiet(), one_line_errors(base.source):
        index = read_json(base.folder / "model_index.json")
        variants = {part: variant for part, variant in base.variants.items() if part not in components}
        given = {**_variants(base, index, variants, dtype), **components}
        types = dtype if base.kind.vae_dtype is None else {"default": dtype, "vae": base.kind.vae_dtype}
        pipe = base.pipeline.from_pretrained(base.folder, torch_dtype=types, use_safetensors=True, **given)
        if "tokenizer" not in components:
            _check_tokenizer(pipe.tokenizer, base)
        pipe.register_modules(scheduler=settled(pipe.scheduler, base.name))
    if isinstance(pipe.scheduler, tuple(base.kind.schedulers.values())):
        base.kind.predicts(pipe.scheduler, base.name)
        pipe.register_to_config(_name_or_path=base.name)
        set_kind(pipe, base.kind)
        return pipe
    found = type(pipe.scheduler).__name__
    raise InputError(f"model {base.name} has a {found}: {base.kind.title} wants {base.kind.wants}")


def _variants(base: VideoBase, index: Any, variants: Mapping[str, str], dtype: torch.dtype) -> dict[str, Any]:
    """Components that exist as a variant only, by name."""
    own = {part: base.kind.vae_dtype if part == "vae" else None for part in variants}
    return {
        part: load_component(base.folder, index, part, variant, own[part] or dtype)
        for part, variant in variants.items()
    }


def use_scheduler(pipe: Any, kind: VideoKind, name: str) -> None:
    """Give a pipeline the scheduler of this short word; "auto" leaves it the model's own."""
    if name != "auto":
        pipe.register_modules(scheduler=kind.rescheduled(pipe.scheduler, name))


def load_network(base: VideoBase, dtype: torch.dtype | None = None) -> nn.Module:
    """A local model's transformer alone; without a dtype in float32."""
    with quiet(), one_line_errors(base.source):
        network: nn.Module = base.kind.network.from_pretrained(
            base.folder,
            subfolder="transformer",
            torch_dtype=dtype,
            use_safetensors=True,
            variant=base.variants.get("transformer"),
        )
    return network


def stored_dtype(base: VideoBase) -> torch.dtype:
    """The widest of a local transformer's weights on disk, so that none is rounded before it is hashed."""
    return widest_dtype(header_of(base.folder / "transformer", base.weights["transformer"]).dtypes)


def load_tokenizer(base: VideoBase) -> T5Tokenizer:
    """A local model's."""
    with quiet(), one_line_errors(base.source):
        tokenizer = T5Tokenizer.from_pretrained(base.folder / "tokenizer")
        _check_tokenizer(tokenizer, base)
    return tokenizer


def _check_tokenizer(tokenizer: Any, base: VideoBase) -> None:
    check_tokenizer(tokenizer, read_config(base.folder, "text_encoder", base.name), "tokenizer", base.name)
    limit_length(tokenizer)


def text_encoder(
    base: VideoBase, tokenizer: T5Tokenizer, max_tokens: int, device: torch.device, dtype: torch.dtype
) -> Encoder:
    """A local model's text encoder: a text → its embeddings (max_tokens, D) in `dtype`, padded as the pipeline pads.

    It is read in the 16 bits that it was stored in, whatever `dtype` is: in 32, T5-XXL takes 17.7 GiB.
    """
    kind = base.kind
    folder = base.folder / "text_encoder"
    own = encoding_dtype(header_of(folder, base.weights["text_encoder"]).dtypes, dtype)

    def load() -> Encode:
        with quiet(), one_line_errors(base.source):
            variant = base.variants.get("text_encoder")
            model: Any = kind.encoder.from_pretrained(folder, dtype=own, use_safetensors=True, variant=variant)
        model.to(device)

        def encode(text: str | None) -> tuple[Tensor, ...]:
            asked = kind.null if text is None else text
            return (kind.encode(model, tokenizer, asked, max_tokens, device).to("cpu", dtype),)

        return encode

    weights = [folder / name for name in base.weights["text_encoder"].files]
    files = {path.name: path for path in (*sorted(folder.glob("*.json")), *weights)}
    facts = {
        "dtype": str(dtype),
        "encoder": str(own),
        "max_tokens": max_tokens,
        "tokenizer": tokenizer_facts(tokenizer),
    }
    code = {"code": Path(__file__), "family's code": Path(inspect.getfile(type(kind)))}
    return Encoder(load=load, files={**files, **code}, facts=facts, device=device)


def sketched_encoder(base: VideoBase, dtype: torch.dtype) -> nn.Module | None:
    """The text encoder on the meta device, as `text_encoder` reads it; `None` where its size is not known.

    On the hub weights are in 16 bits, which of the two their headers would say.
    """
    if base.source.kind == "folder":
        config = read_config(base.folder, "text_encoder", base.name)
        own = encoding_dtype(header_of(base.folder / "text_encoder", base.weights["text_encoder"]).dtypes, dtype)
    elif base.kind.text(base.transformer)[1] == base.kind.encoder_config["d_model"]:
        config, own = dict(base.kind.encoder_config), dtype if dtype.itemsize == 2 else torch.bfloat16
    else:
        return None
    with one_line_errors(base.source):
        return sketched_component(base.kind.encoder, config, own)


def sketched_vae(base: VideoBase, dtype: torch.dtype) -> nn.Module:
    """On the meta device."""
    with one_line_errors(base.source):
        return sketched_component(base.kind.vae, vars(base.vae), base.kind.vae_dtype or dtype)


def save_lora(kind: VideoKind, transformer: Any, directory: Path, adapter: str) -> None:
    """directory/pytorch_lora_weights.safetensors, loaded by any stock pipeline of the family.

    By the stock saver, raw PEFT keys with the metadata that keeps alpha ≠ rank on reload, in float32.
    """
    layers = get_peft_model_state_dict(transformer, adapter_name=adapter)
    kind.pipeline.save_lora_weights(
        directory,
        transformer_lora_layers={name: tensor.float().contiguous().cpu() for name, tensor in layers.items()},
        transformer_lora_adapter_metadata=transformer.peft_config[adapter].to_dict(),
        safe_serialization=True,
    )
