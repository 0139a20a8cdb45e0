"""`selfnpo-image`: the commands for image models. Each one's module is imported when it is called."""

import sys

import click

from selfnpo_core.commands.program import LazyGroup, run

NAME = "selfnpo-image"
_COMMANDS = {
    "models": ("selfnpo_image.commands.models:models", "Known models: hub id, licence, size, prediction type, dtype."),
    "train": ("selfnpo_image.commands.train:train", "Train negative weights for a model, from prompts only."),
    "sample": ("selfnpo_image.commands.sample:sample", "Draw pictures, with negative weights or without."),
    "compare": ("selfnpo_image.commands.compare:compare", "The same pictures with and without, side by side."),
    "evaluate": ("selfnpo_image.commands.evaluate:evaluate", "Figures of a sample folder, and paired tests."),
    "inspect": ("selfnpo_image.commands.inspect:inspect", "What negative weights are, and how strong."),
    "export": ("selfnpo_image.commands.export:export", "Negative weights for diffusers, ComfyUI, or merged."),
    "study": ("selfnpo_image.commands.study:study", "A page on which people compare two folders of pictures, blind."),
    "report": ("selfnpo_image.commands.report:report", "One page of what was measured of a run, or of samples."),
    "demo": ("selfnpo_image.demo.command:demo", "The whole story on the model that ships with this package."),
}


@click.group(cls=LazyGroup, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="selfnpo-image")
def selfnpo_image() -> None:
    """Self-NPO for image diffusion models: negative weights, trained from prompts only."""


def main() -> None:
    """Entry point."""
    sys.exit(run(selfnpo_image, name=NAME))


if __name__ == "__main__":
    main()
