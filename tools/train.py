"""Train negative weights on one process or many: the options of `selfnpo-video train` and `selfnpo-image train`.

    python tools/train.py --model cogvideox-2b --output RUN
    torchrun --nproc-per-node 8 tools/train.py --config recipes/cogvideox-2b-zero3.yaml --output RUN
    deepspeed tools/train.py --config recipes/cogvideox-2b-zero3.yaml --output RUN
    accelerate launch --num_processes 8 tools/train.py --family image --config recipes/sd15-lora.yaml --output RUN

The recipe's `engine` says how processes share the work (ddp, zero1, zero2, zero3). A run makes the same updates on any
number of them, as long as batch_size × grad_accumulation × processes stays the same.
"""

import sys
from typing import Any

import click

from selfnpo_core.commands.family import family_named
from selfnpo_core.commands.options import train_options
from selfnpo_core.commands.running import run


@click.command(help=__doc__)
@click.option("--family", type=click.Choice(["image", "video"]), default="video", show_default=True)
@click.option("--local_rank", type=int, hidden=True, help="Added by `deepspeed`; the environment says the same.")
@train_options
def train(family: str, local_rank: int | None, **options: Any) -> None:
    from selfnpo_core.commands.train import run_train

    run_train(family_named(family), options)


if __name__ == "__main__":
    sys.exit(run(train, name="train.py"))
