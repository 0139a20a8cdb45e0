"""`models`: the table of known models."""

from dataclasses import asdict

import click

from selfnpo_core.commands.printing import echo_json, echo_table
from selfnpo_core.models.sources import KnownModel
from selfnpo_image.models import KNOWN

_HEAD = ("name", "family", "hub id", "parameters", "predicts", "dtype", "memory", "licence")


@click.command(help="List the models that go by a name. Any other model of these families works too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(as_json: bool) -> None:
    if as_json:
        echo_json({"models": [asdict(model) for model in KNOWN.values()]})
        return
    echo_table(_HEAD, [_row(model) for model in KNOWN.values()])
    click.echo(
        "\nAlso: a hub id owner/name or a diffusers folder of these families, or a .safetensors file of SD1.5, SDXL."
    )


def _row(model: KnownModel) -> tuple[str, ...]:
    """memory is what was measured, or a dash."""
    size = f"{model.parameters / 1e6:,.1f} M"
    place = model.hub_id or "(in the package)"
    return model.name, model.family, place, size, model.prediction_type, model.dtype, model.memory or "—", model.licence
