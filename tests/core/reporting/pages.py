"""Sample folders that a toy network has measured, and a reader of pages that finds what is not in them."""

import json
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tests.core.study.drawn import draw_arm

from selfnpo_core.commands.evaluate import run_evaluate
from selfnpo_core.commands.report import run_report
from selfnpo_core.errors import InputError
from selfnpo_core.evaluation.metrics import Metric
from selfnpo_core.evaluation.networks import Network
from selfnpo_core.evaluation.run import MetricSet
from selfnpo_core.sampling.medium import Medium

LINKS = ("https://arxiv.org/",)


def read(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))[None]
    except Exception:
        raise InputError(f"{path} is no picture") from None


NETWORK = Network(
    name="toy",
    columns=("red", "blue"),
    model="mean colours",
    preprocessing="",
    library="torch",
    load=lambda places, device: (
        lambda samples, prompts: torch.tensor(
            [[s[..., 0].mean(), s[..., 2].mean()] for s in samples], dtype=torch.float32
        )
    ),
)
METRICS = [
    Metric(name="red", kind="score", network=NETWORK),
    Metric(name="blue", kind="score", network=NETWORK, better="neither"),
]
PICTURES = Medium(unit="picture", suffixes=frozenset({".png"}), read=read)
OFFERED = MetricSet(metrics=lambda options: METRICS, groups={})


def evaluate(folder: Path, against: Path | None, json_: Path, **options: Any) -> dict[str, Any]:
    """What the command does, and its file as it is read back."""
    given = {"metrics": "red,blue", "reference": None, "weights": None, "cache": None, "skip_bad": False}
    given |= {"allow_different": False, "batch_size": None, "device": "cpu", "json": json_}
    run_evaluate(OFFERED, PICTURES, {**given, "folder": folder, "against": against, **options})
    return json.loads(json_.read_text(encoding="utf-8"))


def report(folder: Path, **options: Any) -> str:
    """The page that the command writes."""
    given = {"against": None, "figures": (), "output": None, "markdown": None, "by": None, "count": 6, "seed": 0}
    run_report(PICTURES, {**given, "folder": folder, **options})
    return Path(options.get("output") or folder / "report.html").read_text(encoding="utf-8")


def shades(root: Path, name: str, reds: list[int], **changes: Any) -> Path:
    """A folder of pictures, each of a redness of its own."""
    folder = draw_arm(root / name, len(reds), 0, **changes)
    for index, red in enumerate(reds):
        file = folder / f"{index:05d}-{70 + index}.png"
        Image.fromarray(np.full((32, 32, 3), (red, 90, 90), np.uint8)).save(file)
    return folder


class Page(HTMLParser):
    """A page's text, its pictures as PIL opens them, and every address that is not in it."""

    def __init__(self, text: str):
        super().__init__()
        self.text, self.pictures, self.outside, self.tags, self.ids = "", [], [], [], []
        self.feed(text)
        self.text = " ".join(self.text.split())
        if "@import" in text or "url(http" in text:
            self.outside.append("a stylesheet")

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for key, value in attributes:
            if key == "id":
                self.ids.append(value)
            if key in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                self._follow(tag, value or "")
            assert not key.startswith("on")

    def _follow(self, tag: str, value: str) -> None:
        if value.startswith("data:image/webp;base64,"):
            picture = Image.open(BytesIO(b64decode(value.partition(",")[2], validate=True)))
            picture.load()
            self.pictures.append(picture)
        elif not (value.startswith("#") or value == "data:," or (tag == "a" and value.startswith(LINKS))):
            self.outside.append(value)

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"
