"""Single-file checkpoints: one .safetensors in the layout of the family's first release.

A file has weights only. The configurations of SD1.5 (CompVis and Runway, 2112.10752) and SDXL (Stability AI,
2307.01952) are in this package, so that no hub is asked for them; their tokenizers are CLIP's, which come from the
hub's cache or from `--model-config`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from selfnpo_core.errors import InputError
from selfnpo_core.models.headers import Header
from selfnpo_core.models.quantised import check_header
from selfnpo_core.models.sources import KnownModel, Source
from selfnpo_image.base import ImageBase
from selfnpo_image.kinds import STEM, FileLayout, Kind, Shapes


def of_file(source: Source, kind: Kind, header: Header, known: KnownModel | None) -> ImageBase:
    """A file of this family, its network that of the first release.

    Raises `InputError` for an inpainting model, and for one of quantised weights.
    """
    check_header(header, source.name)
    shape = header.shapes[STEM]
    channels = shape[1] if len(shape) == 4 else 0
    if channels != 4:
        raise kind.wrong(source.name, f"an inpainting or editing model ({channels} input channels)")
    network = layout_of(kind).configs["unet/config.json"]
    return ImageBase(source=source, family=kind.name, known=known, kind=kind, network=network, header=header)


@contextmanager
def usual_ending(file: Path) -> Iterator[Path]:
    """The file by a name in small letters: diffusers goes by the ending, and takes .SAFETENSORS for a pickle."""
    if file.suffix == ".safetensors":
        yield file
        return
    with TemporaryDirectory() as folder:
        link = Path(folder) / "model.safetensors"
        link.symlink_to(file.absolute())
        yield link


@contextmanager
def prepared(base: ImageBase) -> Iterator[dict[str, Any]]:
    """Arguments for `from_single_file` beside the path: a folder of configurations, and tokenizers if it has none."""
    if base.source.config is not None:
        yield {"config": str(base.source.config)}
        return
    layout = layout_of(base.kind)
    width = base.shapes[layout.cross_attention][1] if layout.cross_attention in base.shapes else None
    if width != layout.text_width:
        raise InputError(
            f"model {base.name} is of {base.kind.title}'s kind but of another size (text width {width}): give a "
            "diffusers folder of its configurations as --model-config"
        )
    with TemporaryDirectory() as folder:
        for place, config in configs_for(layout, base.shapes).items():
            (Path(folder) / place).parent.mkdir(exist_ok=True)
            (Path(folder) / place).write_text(json.dumps(config), encoding="utf-8")
        vocabulary = layout.configs["text_encoder/config.json"]["vocab_size"]
        tokenizers = {part: _clip_tokenizer(base.name, *at, vocabulary) for part, at in layout.tokenizers.items()}
        yield {"config": folder, **tokenizers}


def configs_for(layout: FileLayout, shapes: Shapes) -> dict[str, dict[str, Any]]:
    """Fine-tunes mark v-prediction, and zero terminal SNR (2305.08891), by an empty tensor of that name."""
    configs: dict[str, dict[str, Any]] = copy.deepcopy(dict(layout.configs))  # type: ignore[arg-type]
    if "v_pred" in shapes:
        configs["scheduler/scheduler_config.json"]["prediction_type"] = "v_prediction"
    if "ztsnr" in shapes:
        configs["scheduler/scheduler_config.json"] |= {
            "_class_name": "DDIMScheduler",
            "clip_sample": False,
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        }
        configs["model_index.json"]["scheduler"] = ["diffusers", "DDIMScheduler"]
    return configs


def layout_of(kind: Kind) -> FileLayout:
    """That of a family that has single files."""
    assert kind.layout is not None
    return kind.layout


def _clip_tokenizer(name: str, place: str, padding: str | None, vocabulary: int) -> Any:
    from transformers import CLIPTokenizer

    problem: Exception | None = None
    try:
        tokenizer = CLIPTokenizer.from_pretrained(place, **({} if padding is None else {"pad_token": padding}))
        if len(tokenizer) == vocabulary:  # without files it comes empty
            return tokenizer
    except Exception as error:
        problem = error
    raise InputError(
        f"model {name} is a single file, which has no tokenizer, and {place} cannot be had from the hub: "
        "give any diffusers folder of the same size as --model-config (its weights are not read)"
    ) from problem
