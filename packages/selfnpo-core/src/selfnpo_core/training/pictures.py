"""Sample grids of a run: a row a prompt; a pair of columns a guidance scale, without and with the negative weights."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

HEADER = 14


def sample_grid(columns: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Columns of equally many pictures under their titles."""
    cells = [picture.convert("RGB") for _, pictures in columns for picture in pictures]
    width, height = max(c.width for c in cells), max(c.height for c in cells)
    rows = max(len(pictures) for _, pictures in columns)
    grid = Image.new("RGB", (width * len(columns), HEADER + height * rows), "white")
    pen = ImageDraw.Draw(grid)
    for x, (title, pictures) in enumerate(columns):
        pen.text((x * width + 2, 1), title, fill="black")
        for y, picture in enumerate(pictures):
            grid.paste(picture.convert("RGB"), (x * width, HEADER + y * height))
    return grid
