"""What the demo shows: the table, side-by-side pictures, and the curves of FID and accuracy against guidance scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Cell = Mapping[str, object]
INK = {"cfg": "#4477aa", "npo": "#cc3311"}


def table(cells: Sequence[Cell]) -> str:
    """One line a cell: arm, scale, FID, accuracy, win rate against plain guidance, cost."""
    lines = [
        "| arm | scale | FID ↓ | prompt accuracy ↑ | win rate against CFG | UNet rows a picture | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell in cells:
        versus = cell.get("against_cfg")
        wins = percent(versus["win_rate"]) if versus else "—"  # type: ignore[index]
        lines.append(
            f"| {cell['arm']} | {cell['scale']:g} | {bounds(cell['fid'], 1)} | {percent(cell['accuracy'])} | {wins} "  # type: ignore[arg-type]
            f"| {cell['rows_per_picture']:g} | {cell['seconds']:.0f} |"
        )
    return "\n".join(lines)


def bounds(interval: Sequence[float], digits: int) -> str:
    """value ± half the interval's width."""
    value, low, high = interval
    return f"{value:.{digits}f} ± {(high - low) / 2:.{digits}f}"


def percent(interval: Sequence[float]) -> str:
    """A proportion and its interval in per cent."""
    value, low, high = (100 * v for v in interval)
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def side_by_side(
    columns: Mapping[str, Tensor], prompts: Sequence[str], path: Path, *, rows: int = 8, zoom: int = 2
) -> None:
    """The first `rows` pictures of each arm, one row a prompt. columns: heading → (N, 3, H, W) uint8."""
    side = next(iter(columns.values())).shape[-1] * zoom
    gap, head, words = 6, 18, 260
    sheet = Image.new("RGB", (words + len(columns) * (side + gap), head + rows * (side + gap)), "white")
    ink, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for k, (heading, pictures) in enumerate(columns.items()):
        left = words + k * (side + gap)
        ink.text((left, 2), heading, fill="black", font=font)
        for r in range(min(rows, len(pictures))):
            picture = Image.fromarray(pictures[r].permute(1, 2, 0).numpy())
            sheet.paste(picture.resize((side, side), Image.Resampling.BICUBIC), (left, head + r * (side + gap)))
    for r, prompt in enumerate(prompts[:rows]):
        ink.multiline_text((6, head + r * (side + gap) + side // 2 - 8), _wrap(prompt), fill="black", font=font)
    sheet.save(path)


def _wrap(text: str, width: int = 38) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] += word + " "
    return "\n".join(line.strip() for line in lines)


def curves(cells: Sequence[Cell], path: Path, *, title: str) -> None:
    """FID and prompt accuracy against guidance scale, a line an arm with its 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    arms = list(dict.fromkeys(cell["arm"] for cell in cells))
    for axis, key, label in zip(axes, ("fid", "accuracy"), ("FID (oracle features)", "joint accuracy"), strict=True):
        for arm in arms:
            own = sorted((cell for cell in cells if cell["arm"] == arm), key=lambda cell: cell["scale"])
            x, values = [cell["scale"] for cell in own], [cell[key] for cell in own]
            errors = [[v[0] - v[1] for v in values], [v[2] - v[0] for v in values]]
            axis.errorbar(x, [v[0] for v in values], errors, marker="o", capsize=3, label=arm, color=INK.get(arm))
        axis.set_xlabel("guidance scale")
        axis.set_title(label)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
