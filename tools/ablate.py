"""What each setting of a demo's recipe is worth: trained and drawn with one changed at a time.

    python tools/ablate.py --world image --work build/ablations-image
    python tools/ablate.py --world video --work build/ablations-video

Hours on two CPU cores. Each cell is one JSON file and is not computed again, so this can be stopped and started at any
time. The page is docs/results/ablations/WORLD.
"""

import json
import sys
from pathlib import Path

import click
import torch

from selfnpo_core.commands.running import run
from selfnpo_core.experiments.ablations import CHANGES, draw_ablations, possible, write_ablations_page
from selfnpo_core.experiments.cells import Table
from selfnpo_core.experiments.protocol import CHOOSE
from selfnpo_image.demo import pictures
from selfnpo_video.demo import moving

DEMOS = {"image": (pictures.demo, 1000), "video": (moving.demo, 500)}


@click.command(help=__doc__)
@click.option("--world", type=click.Choice(list(DEMOS)), required=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Runs and judges' scores; not committed.")
@click.option("--output", type=click.Path(path_type=Path), help="Default: docs/results/ablations/WORLD.")
@click.option("--samples", type=click.IntRange(2), help="Samples a cell. Default: 1,000 pictures, 500 clips.")
@click.option("--scale", default=2.5, show_default=True, help="Guidance scale of all cells.")
@click.option("--seed", default=1, show_default=True, help="Of the training.")
@click.option("--changes", help=f"Of {', '.join(CHANGES)}. Default: all that change the demo's recipe.")
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
def main(
    world: str,
    work: Path,
    output: Path | None,
    samples: int | None,
    scale: float,
    seed: int,
    changes: str | None,
    threads: int,
) -> None:
    if threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    make, usual = DEMOS[world]
    demo, output = make(), output or Path("docs/results/ablations") / world
    table = Table.of(demo, output / "cells", work / "scores", samples=samples or usual, seed=CHOOSE)
    names = changes.split(",") if changes else possible(demo)
    draw_ablations(demo, table, demo.pipeline(), names, seed=seed, scale=scale, work=work)
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(table.folder.glob("*.json"))]
    told = {"samples": samples, "changes": changes}
    command = f"python tools/ablate.py --world {world} --work build/ablations-{world} --scale {scale:g} --seed {seed}"
    command += "".join(f" --{key} {value}" for key, value in told.items() if value)
    write_ablations_page(demo, cells, output, command)
    click.echo(f"the page is {output / 'README.md'}")


if __name__ == "__main__":
    sys.exit(run(main, name="ablate.py"))
