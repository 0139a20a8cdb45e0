"""`selfnpo-video`: the commands for video models. Each one's module is imported when it is called."""

import sys

import click

from selfnpo_core.commands.program import LazyGroup, run

NAME = "selfnpo-video"
_COMMANDS = {
    "models": ("selfnpo_video.commands.models:models", "Known models: hub id, licence, size, dtype, clip size."),
    "train": ("selfnpo_video.commands.train:train", "Train negative weights for a model, from prompts only."),
    "sample": ("selfnpo_video.commands.sample:sample", "Draw clips, with negative weights or without."),
    "inspect": ("selfnpo_video.commands.inspect:inspect", "What negative weights are, and how strong."),
    "compare": ("selfnpo_video.commands.compare:compare", "The same clips with and without, side by side."),
    "evaluate": ("selfnpo_video.commands.evaluate:evaluate", "Figures of a sample folder, and paired tests."),
    "export": ("selfnpo_video.commands.export:export", "Negative weights for diffusers, ComfyUI, or merged."),
    "study": ("selfnpo_video.commands.study:study", "A page on which people compare two folders of clips, blind."),
    "report": ("selfnpo_video.commands.report:report", "One page of what was measured of a run, or of samples."),
    "demo": ("selfnpo_video.demo.command:demo", "The whole story on the model that ships with this package."),
}


@click.group(cls=LazyGroup, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="selfnpo-video")
def selfnpo_video() -> None:
    """Self-NPO for video diffusion transformers (CogVideoX): negative weights, trained from prompts only."""


def main() -> None:
    """Entry point."""
    sys.exit(run(selfnpo_video, name=NAME))


if __name__ == "__main__":
    main()
