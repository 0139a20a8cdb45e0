"""Known checkpoints, and what a name given to `--model` stands for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from selfnpo_core.models import sources
from selfnpo_core.models.sources import KnownModel, Source
from selfnpo_video.shapes import ClipSize


@dataclass(frozen=True, kw_only=True)
class KnownVideoModel(KnownModel):
    """A line of the table that `models` prints."""

    size: ClipSize
    """What it was made for."""
    fps: int = 8
    from_image: bool = False
    """Image to video: for sampling only."""
    window_place: int = 0
    """Latent frame at which windows within a long clip are put: more than 0 where it was trained on such windows."""


def _cogvideox(name: str, hub_id: str, about: str, parameters: int, **changes: Any) -> KnownVideoModel:
    usual: dict[str, Any] = {
        "family": "cogvideox",
        "licence": "CogVideoX licence",
        "prediction_type": "v_prediction",
        "dtype": "bf16",
        "guidance_scale": 6.0,
        "steps": 50,
        "size": ClipSize(frames=49, height=480, width=720),
    }
    return KnownVideoModel(name=name, hub_id=hub_id, about=about, parameters=parameters, **{**usual, **changes})


def _wan(name: str, hub_id: str, about: str, parameters: int, **changes: Any) -> KnownVideoModel:
    """As the examples of diffusers' pipeline draw with them (pipelines/wan/pipeline_wan.py, docs/api/pipelines/wan)."""
    usual: dict[str, Any] = {
        "family": "wan",
        "licence": "Apache-2.0",
        "prediction_type": "flow",
        "dtype": "bf16",
        "guidance_scale": 5.0,
        "steps": 50,
        "size": ClipSize(frames=81, height=480, width=832),
        "fps": 16,
    }
    return KnownVideoModel(name=name, hub_id=hub_id, about=about, parameters=parameters, **{**usual, **changes})


SHIPPED = Path(str(files("selfnpo_video") / "demo" / "assets"))
"""The demo's model, and what looks at its clips."""
_LARGE = {"size": ClipSize(frames=81, height=768, width=1360), "fps": 16}
KNOWN: dict[str, KnownVideoModel] = {
    model.name: model
    for model in (
        KnownVideoModel(
            name="demo",
            family="cogvideox",
            hub_id=None,
            about="ships with the package: clips of one thing in motion, 32×32",
            licence="Apache-2.0",
            parameters=4_588_224,
            prediction_type="v_prediction",
            dtype="fp32",
            guidance_scale=3.0,
            steps=20,
            size=ClipSize(frames=9, height=32, width=32),
            window_place=1,
        ),
        _cogvideox(
            "cogvideox-2b",
            "zai-org/CogVideoX-2b",
            "text to video, sine-cosine positions",
            1_693_783_872,
            licence="Apache-2.0",
            dtype="fp16",
        ),
        _cogvideox("cogvideox-5b", "zai-org/CogVideoX-5b", "text to video, rotary positions", 5_570_283_072),
        _cogvideox(
            "cogvideox-1.5-5b", "zai-org/CogVideoX1.5-5B", "text to video, two frames a patch", 5_570_676_352, **_LARGE
        ),
        _cogvideox("cogvideox-5b-i2v", "zai-org/CogVideoX-5b-I2V", "image to video", 5_570_479_680, from_image=True),
        _cogvideox(
            "cogvideox-1.5-5b-i2v",
            "zai-org/CogVideoX1.5-5B-I2V",
            "image to video, two frames a patch",
            5_571_594_880,
            from_image=True,
            **_LARGE,
        ),
        _wan("wan2.1-1.3b", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "text to video", 1_418_996_800),
        _wan("wan2.1-14b", "Wan-AI/Wan2.1-T2V-14B-Diffusers", "text to video", 14_288_491_584),
        _wan(
            "wan2.2-5b",
            "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
            "text to video, latents of 48 channels",
            4_999_787_712,
            size=ClipSize(frames=121, height=704, width=1280),
            fps=24,
        ),
    )
}

_TELLING = (
    "num_attention_heads",
    "num_layers",
    "in_channels",
    "patch_size_t",
    "use_rotary_positional_embeddings",
    "use_learned_positional_embeddings",
    "ofs_embed_dim",
    "ffn_dim",
)
_DEFAULTS = {
    "num_attention_heads": 30,
    "num_layers": 30,
    "in_channels": 16,
    "use_rotary_positional_embeddings": False,
    "use_learned_positional_embeddings": False,
}
"""Of CogVideoXTransformer3DModel; what is not here is None by default. Wan's folders leave none of these out."""
_FILES = {"cogvideox": "architectures.json", "wan": "architectures_wan.json"}


def find_source(name: str, config: str | Path | None = None) -> Source:
    """What `--model NAME` stands for, by `selfnpo_core.models.sources.find_source`."""
    from selfnpo_core.models.configs import fetched_configs

    return sources.find_source(name, KNOWN, _shipped, config, fetched_configs)


def architecture(name: str) -> Mapping[str, Any]:
    """Configuration of a known model's transformer, from the table in this package or beside the shipped weights."""
    if KNOWN[name].hub_id is None:
        shipped: dict[str, Any] = json.loads((_shipped() / "transformer" / "config.json").read_text(encoding="utf-8"))
        return shipped
    table = _table(KNOWN[name].family)
    return {**table["common"], **table["models"][name]}


def beside(name: str, part: str) -> Mapping[str, Any]:
    """Of a known model's other configurations ("vae", "scheduler", "index"), what differs from its family's usual."""
    found: dict[str, Any] = _table(KNOWN[name].family).get("beside", {}).get(name, {}).get(part, {})
    return found


def _table(family: str) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((files("selfnpo_video") / _FILES[family]).read_text(encoding="utf-8"))
    return table


def known_as(name: str, transformer: Mapping[str, Any]) -> KnownVideoModel | None:
    """The known model that a checkpoint is or was made from: by its name, else by its transformer's configuration."""
    if name in KNOWN:
        return KNOWN[name]
    for other in KNOWN.values():
        if other.hub_id is not None:
            expected = architecture(other.name)
            if all(
                transformer.get(key, _DEFAULTS.get(key)) == expected.get(key, _DEFAULTS.get(key)) for key in _TELLING
            ):
                return other
    return None


def _shipped() -> Path:
    from selfnpo_core.worlds.assets import model_folder

    return model_folder(SHIPPED)
