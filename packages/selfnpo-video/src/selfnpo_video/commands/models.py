"""`models`: the table of known models."""

from dataclasses import asdict

import click

from selfnpo_core.commands.printing import echo_json, echo_table
from selfnpo_video.models import KNOWN, KnownVideoModel

_HEAD = ("name", "hub id", "parameters", "clip", "dtype", "memory", "licence", "for")


@click.command(help="List the models that go by a name. Any other CogVideoX model works too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(as_json: bool) -> None:
    if as_json:
        echo_json({"models": [asdict(model) for model in KNOWN.values()]})
        return
    echo_table(_HEAD, [_row(model) for model in KNOWN.values()])
    click.echo("\nAlso: a hub id owner/name or a diffusers folder of CogVideoX.")


def _row(model: KnownVideoModel) -> tuple[str, ...]:
    """memory is what was measured, or a dash."""
    size = f"{model.parameters / 1e9:,.2f} G" if model.parameters >= 1e9 else f"{model.parameters / 1e6:,.1f} M"
    place = model.hub_id or "(in the package)"
    use = "sample" if model.from_image else "train, sample"
    return model.name, place, size, str(model.size), model.dtype, model.memory or "—", model.licence, use
