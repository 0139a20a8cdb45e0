"""`inspect`: what negative weights are."""

import click

from selfnpo_core.commands.options import model_options
from selfnpo_image.commands.train import family


@click.command(help="Say what FILE or RUN is. Exit 1 if it does nothing. --model measures its strength on the base.")
@click.argument("path", metavar="FILE|RUN")
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--plot", metavar="FILE", help="Write a picture: strength over timesteps, and which layers carry it.")
def inspect(path: str, model: str | None, model_config: str | None, as_json: bool, plot: str | None) -> int:
    from selfnpo_core.commands.inspect import run_inspect

    return run_inspect(family(), path, model, model_config, as_json=as_json, plot=plot)
