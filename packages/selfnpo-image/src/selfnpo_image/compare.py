"""The same prompts and seeds with and without negative weights, side by side.

OUTPUT/without/  OUTPUT/with/   sample folders          OUTPUT/00000-SEED.png   pairs under a caption
OUTPUT/sheet.png                the first pairs         OUTPUT/metrics.json     where an oracle knows the model
"""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from selfnpo_core.errors import InputError
from selfnpo_core.sampling.options import negative_words
from selfnpo_core.sampling.sample_folder import SampleFolder
from selfnpo_core.sampling.side_by_side import GAP, pair
from selfnpo_core.system.files import named_aside, write_text
from selfnpo_core.system.pictures import read_picture
from selfnpo_image.metrics import oracle_for
from selfnpo_image.sampling import Job, draw_into, records

WITHOUT, WITH, SHEET, METRICS = "without", "with", "sheet.png", "metrics.json"
SHEET_PAIRS = 32


def compare(job: Job, output: str | Path) -> Mapping[str, Any] | None:
    """Draw both arms and put them side by side. Returns the metrics, where there is an oracle for the model."""
    if job.negative is None:
        raise InputError("nothing to compare with: give the negative weights as --npo RUN|FILE")
    output, plain = Path(output), replace(job, negative=None)
    prepared = job.load()
    with SampleFolder(output, records(job, prepared.pipe), beside=(WITHOUT, WITH, SHEET, METRICS)) as pairs:
        draw_into(prepared, plain, output / WITHOUT)
        draw_into(prepared, job, output / WITH)
        titles = _titles(job)
        names = [record["file"] for record in pairs.records]
        for index in pairs.missing:
            picture = pair(*_both(output, names[index]), titles, job.prompts[index])
            pairs.add(index, picture.save)
        with named_aside(output / SHEET) as aside:
            sheet(output, names[:SHEET_PAIRS], job.prompts, titles).save(aside)
        oracle = oracle_for(job.base.name)
        if oracle is None:
            return None
        metrics = oracle(
            job.prompts, *([read_picture(output / arm / name) for name in names] for arm in (WITHOUT, WITH))
        )
        write_text(output / METRICS, json.dumps({"schema": 1, **metrics}, indent=1) + "\n")
        return metrics


def sheet(folder: Path, names: Sequence[str], prompts: Sequence[str], titles: Sequence[str]) -> Image.Image:
    """The pairs of `names` in a grid about as wide as high."""
    cells = [
        pair(*_both(folder, name), titles, textwrap.shorten(prompt, 60, placeholder=" …"))
        for name, prompt in zip(names, prompts, strict=False)
    ]
    width, height = max(cell.width for cell in cells) + GAP, max(cell.height for cell in cells) + GAP
    columns = max(1, round((len(cells) * height / width) ** 0.5))
    rows = -(-len(cells) // columns)
    canvas = Image.new("RGB", (columns * width, rows * height), "white")
    for index, cell in enumerate(cells):
        canvas.paste(cell, (index % columns * width, index // columns * height))
    return canvas


def _titles(job: Job) -> tuple[str, str]:
    assert job.negative is not None
    scale = f"scale {job.settings.guidance_scale:g}"
    return scale, f"{scale}, {negative_words(job.negative.use)}"


def _both(folder: Path, name: str) -> tuple[Image.Image, Image.Image]:
    return read_picture(folder / WITHOUT / name), read_picture(folder / WITH / name)
