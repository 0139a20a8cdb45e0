"""Jobs of `sample` as a command line asks for them."""

from typing import Any

import click

from selfnpo_core.commands.options import sampling_options
from selfnpo_video import sampling
from selfnpo_video.family import clip_options


def planned(*words: object) -> sampling.Job:
    """The job that these words of a command line ask for."""
    taken: list[sampling.Job] = []

    @click.command()
    @sampling_options
    @clip_options
    def take(**options: Any) -> None:
        taken.append(sampling.plan(options))

    asked = ["--output", "unused", *map(str, words)]
    if not {"--prompt", "--prompts"} & set(asked):
        asked += ["--prompt", "a red fox"]
    take(asked, standalone_mode=False)
    return taken[0]
