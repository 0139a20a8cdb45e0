"""Samples for people to look at: a row for each prompt, which stands at its left, and a column for each arm."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIDE, GAP, HEAD = 128, 6, 18
"""SIDE: of a picture on the sheet, whatever its own."""
WORDS, LETTERS = 260, 37
"""Pixels for a prompt, and letters in one of its lines."""


def lay_out(columns: Mapping[str, Tensor], prompts: Sequence[str]) -> Image.Image:
    """As many rows as prompts. columns: heading → pictures (N, 3, S, S) uint8, of which the first are shown."""
    place = SIDE + GAP
    sheet = Image.new("RGB", (WORDS + len(columns) * place, HEAD + len(prompts) * place), "white")
    ink, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for column, (heading, pictures) in enumerate(columns.items()):
        left = WORDS + column * place
        ink.text((left, 2), heading, fill="black", font=font)
        for row, picture in enumerate(pictures[: len(prompts)]):
            enlarged = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            sheet.paste(enlarged, (left, HEAD + row * place))
    for row, prompt in enumerate(prompts):
        lines = "\n".join(textwrap.wrap(prompt, LETTERS))
        ink.multiline_text((GAP, HEAD + row * place + SIDE // 2 - 8), lines, fill="black", font=font)
    return sheet
