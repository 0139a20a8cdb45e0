"""The table of docs/results/demo: every arm at every guidance scale, over several training seeds.

    python tools/demo_results.py --work build/results

Hours on two CPU cores. Each cell is one JSON file and is not computed again, so the script can be stopped and started
at any time. The page is written anew after every arm.
"""

from pathlib import Path

import click
import torch

from selfnpo_image.demo import measure, report
from selfnpo_image.demo.cells import Table
from selfnpo_image.demo.command import STEPS
from selfnpo_image.demo.experiments import ARMS, make_arm
from selfnpo_image.models import find_source
from selfnpo_image.sd15 import load_pipeline


@click.command(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Runs and judges' scores; not committed.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs/results/demo"), show_default=True)
@click.option("--samples", default=2000, show_default=True)
@click.option("--scales", default="1.5,2,3,5,8", show_default=True)
@click.option("--seeds", default="1,2,3", show_default=True, help="Training seeds.")
@click.option("--arms", default=",".join(ARMS), show_default=True)
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
def main(work: Path, output: Path, samples: int, scales: str, seeds: str, arms: str, threads: int) -> None:
    if threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    task = measure.Task.draw(samples, seed=3)
    table = Table(folder=output / "cells", scores=work / "scores", task=task, steps=STEPS, batch=100)
    pipe = load_pipeline(find_source("demo"))
    wanted = [(arm, int(seed)) for arm in arms.split(",") for seed in (seeds.split(",") if arm != "cfg" else ["0"])]
    for arm, seed in wanted:
        made = make_arm(arm, seed, work / "runs")
        for scale in map(float, scales.split(",")):
            cell = table.cell(pipe, made, scale)
            print(f"{cell['arm']} at {scale:g}: FID {cell['fid'][0]:.2f}, accuracy {cell['accuracy'][0]:.3f}")
        report.write_page(output)


if __name__ == "__main__":
    main()
