"""`models`: the table of models that go by a name."""

from dataclasses import asdict

import click

from selfnpo_core.commands.family import AnyFamily
from selfnpo_core.commands.printing import echo_json, echo_table


def list_models(family: AnyFamily, *, as_json: bool) -> None:
    known = list(family.known().values())
    if as_json:
        echo_json({"models": [asdict(model) for model in known]})
        return
    rows = [family.row(model) for model in known]
    echo_table(tuple(rows[0]), [tuple(row.values()) for row in rows])
    click.echo(f"\n{family.models_also}")
