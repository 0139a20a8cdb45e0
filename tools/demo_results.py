"""The tables of docs/results: every arm at every guidance scale, over several training seeds.

    python tools/demo_results.py image --work build/results-image
    python tools/demo_results.py video --work build/results-video

Hours on two CPU cores. Each cell is one JSON file and is not computed again, so the script can be stopped and started
at any time. The page is written anew after every arm.
"""

from pathlib import Path

import click
import torch

from selfnpo_core.experiments.arms import ARMS, TUNED_ARMS, make_arm
from selfnpo_core.experiments.cells import Table
from selfnpo_core.experiments.report import write_page
from selfnpo_core.worlds.world import Task
from selfnpo_image.demo import pictures
from selfnpo_video.demo import moving

DEMOS = {"image": (pictures.demo, "docs/results/demo", 2000), "video": (moving.demo, "docs/results/video-demo", 1000)}


@click.command(help=__doc__)
@click.argument("which", type=click.Choice(list(DEMOS)))
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Runs and judges' scores; not committed.")
@click.option("--output", type=click.Path(path_type=Path), help="Default: the demo's folder under docs/results.")
@click.option("--samples", type=int, help="Samples a cell. Default: 2,000 pictures, 1,000 clips.")
@click.option("--scales", default="1.5,2,3,5,8", show_default=True)
@click.option("--seeds", default="1,2,3", show_default=True, help="Training seeds.")
@click.option("--arms", default=",".join(ARMS), show_default=True, help=f"Of these, and {', '.join(TUNED_ARMS)}.")
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
def main(
    which: str,
    work: Path,
    output: Path | None,
    samples: int | None,
    scales: str,
    seeds: str,
    arms: str,
    threads: int,
) -> None:
    if threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    make, folder, usual = DEMOS[which]
    demo, output = make(), output or Path(folder)
    task = Task.draw(demo.world, samples or usual, seed=3)
    table = Table(
        world=demo.world, folder=output / "cells", scores=work / "scores", task=task, steps=demo.steps, batch=100
    )
    pipe = demo.pipeline()
    wanted = [
        (arm, int(seed)) for arm in arms.split(",") for seed in (["0"] if arm in ("cfg", "tuned") else seeds.split(","))
    ]
    for arm, seed in wanted:
        made = make_arm(demo, arm, seed, work / "runs")
        for scale in map(float, scales.split(",")):
            cell = table.cell(pipe, made, scale)
            distance = cell[demo.world.distance][0]
            print(f"{cell['arm']} at {scale:g}: distance {distance:.2f}, accuracy {cell['accuracy'][0]:.3f}")
        write_page(output, demo, f"python tools/demo_results.py {which}")


if __name__ == "__main__":
    main()
