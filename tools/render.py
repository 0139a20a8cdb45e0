"""Render clips for people to look at: prompts × guidance scales, with and without negative weights.

    python tools/render.py --model cogvideox-2b --npo RUN --prompts builtin --scales 4,6,9 --output clips
    torchrun --nproc_per_node 4 tools/render.py …

The same command again draws what is missing; OUTPUT/index.html plays everything offline.
"""

import sys
from typing import Any

import click

from selfnpo_core.commands.options import sampling_options
from selfnpo_core.commands.running import run
from selfnpo_video.family import clip_options


@click.command(help=__doc__)
@sampling_options
@clip_options
@click.option("--scales", metavar="A,B,…", help="Guidance scales, a column each. Default: --guidance-scale alone.")
def render(scales: str | None, **options: Any) -> None:
    from selfnpo_core.errors import InputError
    from selfnpo_video import rendering, sampling
    from selfnpo_video.sheets import INDEX

    job = sampling.plan(options)
    try:
        chosen = [float(scale) for scale in scales.split(",")] if scales else [job.settings.guidance_scale]
    except ValueError:
        raise InputError(f"--scales {scales}: give numbers with commas between them, such as 4,6,9") from None
    drawn = rendering.render(job, chosen, options["output"])
    click.echo(f"{drawn} clips drawn; open {options['output']}/{INDEX}")


if __name__ == "__main__":
    sys.exit(run(render, name="render.py"))
