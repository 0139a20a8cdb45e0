"""Measure a sample folder on one process or many: the options of `selfnpo-image evaluate` and `selfnpo-video evaluate`.

    python tools/evaluate.py DIR --against DIR --reference DIR --metrics fid,kid,clip_score --json FILE
    torchrun --nproc-per-node 8 tools/evaluate.py --family video DIR --metrics fvd,clip_score --reference DIR …

Each process looks at its share and keeps what networks say in --cache, which all of them must see; the first joins it.
The same command again goes on after a kill. --help lists the family's options.
"""

import sys
from typing import Any

import click

from selfnpo_core.commands.family import family_named
from selfnpo_core.commands.program import program
from selfnpo_core.commands.running import run


@click.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
@click.option("--family", type=click.Choice(["image", "video"]), default="image", show_default=True)
@click.pass_context
def evaluate(ctx: click.Context, family: str) -> Any:
    """Every word but --family goes to that family's own command."""
    command = program(family_named(family)).commands["evaluate"]
    return command.main(ctx.args, prog_name="evaluate.py", standalone_mode=False)


if __name__ == "__main__":
    sys.exit(run(evaluate, name="evaluate.py"))
