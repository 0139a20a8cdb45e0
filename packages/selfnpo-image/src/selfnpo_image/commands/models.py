"""`models`: the table of known models."""

from dataclasses import asdict

import click

from selfnpo_core.cli import echo_json
from selfnpo_image.models import KNOWN, KnownModel

_HEAD = ("name", "hub id", "parameters", "predicts", "dtype", "memory", "licence")


@click.command(help="List the models that go by a name. Any other model of the SD1.5 family works too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(as_json: bool) -> None:
    if as_json:
        echo_json({"models": [asdict(model) for model in KNOWN.values()]})
        return
    rows = [_HEAD, *(_row(model) for model in KNOWN.values())]
    widths = [max(len(row[k]) for row in rows) for k in range(len(_HEAD))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    click.echo("\nAlso: a hub id owner/name, a diffusers folder, or a .safetensors file of the SD1.5 family.")


def _row(model: KnownModel) -> tuple[str, ...]:
    """memory is what was measured, or a dash."""
    size = f"{model.parameters / 1e6:,.1f} M"
    place = model.hub_id or "(in the package)"
    return model.name, place, size, model.prediction_type, model.dtype, model.memory or "—", model.licence
