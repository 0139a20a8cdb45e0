"""What a LoRA made of an offset of all weights loses."""

from pathlib import Path

import click
from benchmarks.common import command, write
from tqdm import tqdm

from selfnpo_core.weights.exporting import near_lora
from selfnpo_core.weights.npo_folder import load_npo
from selfnpo_image.families import find_base
from selfnpo_image.sd15 import SD15


@click.command("ranks")
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs/results/lora-ranks.json"))
@click.option("--npo", type=click.Path(exists=True), required=True, help="A run of the image demo with full weights.")
@click.option("--ranks", default="4,8,16,32,64", show_default=True)
def ranks(output: Path, npo: str, ranks: str) -> None:
    """What `export --format lora --rank R` loses of an offset of all weights, on the image demo's model."""
    loaded, backbone = load_npo(npo), SD15(find_base("demo"), device="cpu")
    rows = []
    for rank in tqdm([int(n) for n in ranks.split(",")], unit="rank"):
        factors, errors = near_lora(loaded, backbone, rank)
        numbers = sum(f.up.numel() + f.down.numel() for f in factors.values())
        rows.append({"rank": rank, "numbers": numbers, **{name: round(error, 4) for name, error in errors.items()}})
    figures = {
        "schema": 1,
        "command": command(),
        "model": "the image demo's model: a toy, not a real one",
        "relative error": "of the matrices that a LoRA can hold, of all weights, and of the effect on predictions",
        "numbers of the offset": sum(tensor.numel() for tensor in loaded.tensors.values()),
        "ranks": rows,
    }
    write(output, figures)
