"""`selfnpo-image demo`: the whole story on the shipped model, in minutes on a CPU."""

from typing import Any

import click

from selfnpo_core.commands.options import demo_options


@click.command(help="Train negative weights for the shipped toy model, sample with and without them, measure.")
@demo_options
def demo(**options: Any) -> None:
    from selfnpo_core.commands.demo import tell
    from selfnpo_image.demo import shapes

    tell(shapes.demo(), **options)
