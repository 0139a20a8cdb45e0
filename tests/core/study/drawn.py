"""Two folders of small pictures drawn by code, and what a family would say of them."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from selfnpo_core.errors import InputError
from selfnpo_core.sampling.medium import ShownMedium, damaged
from selfnpo_core.sampling.sample_folder import METADATA, sample_name
from selfnpo_core.study.pairs import Side


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture.size
    except Exception:
        raise InputError(f"{path} is no whole picture") from None


def _damage(source: Path, target: Path) -> None:
    with Image.open(source) as picture:
        Image.fromarray(damaged(np.asarray(picture)[None])[0]).save(target)


MEDIUM = ShownMedium(
    unit="picture",
    suffixes=frozenset({".png"}),
    read=lambda path: np.asarray(Image.open(path))[None],
    suffix="png",
    content_type="image/png",
    size=_size,
    plain=shutil.copyfile,
    damage=_damage,
)


def draw_arm(folder: Path, count: int, shade: int, *, size: int = 32, **changes: Any) -> Path:
    """Pictures of a square on a ramp; `changes` go into their records."""
    folder.mkdir(parents=True)
    lines = []
    for index in range(count):
        pixels = np.full((size, size, 3), 8 * index, np.uint8) + np.arange(size, dtype=np.uint8)[:, None]
        pixels[size // 4 : -size // 4, size // 4 : -size // 4] = (shade, 200, 255 - shade)
        record = {"file": sample_name(index, 70 + index, "png"), "prompt": f"square <{index}>", "seed": 70 + index}
        record |= {"scheduler": "DDIMScheduler", "steps": 20, "width": size, "height": size, **changes}
        Image.fromarray(pixels).save(folder / record["file"])
        lines.append(json.dumps(record) + "\n")
    (folder / METADATA).write_text("".join(lines), encoding="utf-8")
    return folder


def draw_folders(root: Path, count: int = 4) -> Mapping[Side, Path]:
    """Arm a is red, b is blue."""
    return {"a": draw_arm(root / "red", count, 250), "b": draw_arm(root / "blue", count, 5)}
