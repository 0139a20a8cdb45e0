"""From the font to the sheet of pictures that ships with the package."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from selfnpo_core.errors import InputError
from selfnpo_core.worlds.things import CODES, COLUMNS, TILE

STRIKE = 109
"""The one size that the font's bitmaps have."""
MARGIN = 2


def draw_sheet(font: Path) -> Image.Image:
    """Tiles of all things, RGBA, row by row in the order of `CODES`; each fills its tile but for a margin.

    font: NotoColorEmoji.ttf with bitmaps (CBDT). Raises `InputError` for a font without one of the pictures.
    """
    try:
        face = ImageFont.truetype(str(font), STRIKE)
    except OSError as error:
        raise InputError(f"{font} is no colour font with bitmaps of size {STRIKE}: give NotoColorEmoji.ttf") from error
    sheet = Image.new("RGBA", (COLUMNS * TILE, -(-len(CODES) // COLUMNS) * TILE))
    for place, (name, code) in enumerate(CODES.items()):
        glyph = Image.new("RGBA", (2 * STRIKE, 2 * STRIKE))
        ImageDraw.Draw(glyph).text((0, 0), chr(code), font=face, embedded_color=True)
        box = glyph.getbbox()
        if box is None:
            raise InputError(f"{font} has no picture of a {name} (U+{code:04X}): give NotoColorEmoji.ttf")
        glyph = glyph.crop(box)
        scale = (TILE - 2 * MARGIN) / max(glyph.size)
        size = max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale))
        glyph = glyph.resize(size, Image.Resampling.LANCZOS)
        row, column = divmod(place, COLUMNS)
        corner = column * TILE + (TILE - glyph.width) // 2, row * TILE + (TILE - glyph.height) // 2
        sheet.paste(glyph, corner)
    return sheet
