"""The program of a family: its commands, each a line of help, options and a call.

Only click is imported here, so that `--help` answers at once; what a command does is imported when it is called.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from selfnpo_core.commands import options as common
from selfnpo_core.commands.family import AnyFamily


class Program(click.Group):
    """A group that lists its commands in the order in which they were added, each with its whole line of help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.short_help or "") for name, command in self.commands.items()])


def program(family: AnyFamily) -> click.Group:
    """`selfnpo-image` or `selfnpo-video`: the same commands for every family."""
    group = Program(
        name=family.program.replace("-", "_"),
        help=family.about,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for command in _commands(family):
        group.add_command(command)
    return click.version_option(package_name=family.program)(group)


def _commands(family: AnyFamily) -> Iterator[click.Command]:
    units, own = f"{family.unit}s", _own_options(family)

    @click.command(short_help=family.models_line, help=family.models_help)
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    def models(as_json: bool) -> None:
        from selfnpo_core.commands.models import list_models

        list_models(family, as_json=as_json)

    yield models

    @click.command(
        short_help="Train negative weights for a model, from prompts only.",
        help="Train negative weights. The result is RUN/npo; --resume goes on from RUN's last checkpoint.",
    )
    @common.train_options
    @own("train")
    def train(**options: Any) -> None:
        from selfnpo_core.commands.train import run_train

        run_train(family, options)

    yield train

    @click.command(
        short_help=f"Draw {units}, with negative weights or without.",
        help=f"Draw {units} as 00000-SEED.{family.suffix} with a metadata.jsonl. The same command again goes on.",
    )
    @common.sampling_options
    @own("sample")
    def sample(**options: Any) -> None:
        from selfnpo_core.commands.sample import run_sample

        run_sample(family, options)

    yield sample

    @click.command(
        short_help=f"The same {units} with and without, side by side.",
        help="Draw the same prompts and seeds with and without --npo, side by side under captions.",
    )
    @common.sampling_options
    @own("sample")
    def compare(**options: Any) -> None:
        from selfnpo_core.commands.sample import run_compare

        run_compare(family, options)

    yield compare

    @click.command(short_help="Figures of a sample folder, and paired tests.", help=family.evaluate_help)
    @common.evaluate_options
    @own("evaluate")
    def evaluate(**options: Any) -> None:
        from selfnpo_core.commands.evaluate import run_evaluate

        run_evaluate(family.metrics(), family.medium(options), options)

    yield evaluate

    @click.command(
        short_help="What negative weights are, and how strong.",
        help="Say what FILE or RUN is. Exit 1 if it does nothing. --model measures on the base how strong it is, and "
        "how much of it is contrast, guidance scale, or a direction of its own.",
    )
    @common.inspect_options
    def inspect(**options: Any) -> int:
        from selfnpo_core.commands.inspect import run_inspect

        return run_inspect(family, options)

    yield inspect

    @click.command(
        short_help="Negative weights for diffusers, ComfyUI, or merged.",
        help="Write negative weights in a form that other programs read. --model defaults to their own base.",
    )
    @common.export_options
    def export(**options: Any) -> None:
        from selfnpo_core.commands.export import run_export

        run_export(family, options)

    yield export

    @click.command(
        short_help=f"A page on which people compare two folders of {units}, blind.",
        help=f"A page on which people compare two folders of {units}, blind. Votes are kept; Ctrl-C ends it.",
    )
    @common.study_options
    @own("study")
    def study(**options: Any) -> None:
        from selfnpo_core.commands.study import run_study

        run_study(family, options)

    yield study

    @click.command(
        short_help="One page of what was measured of a run, or of samples.",
        help=f"Write one HTML page of a training run, of a folder that `compare` made, or of {units}: what was "
        "measured, how sure it is, and the samples that gained most, lost most, and some at random. It opens anywhere, "
        "offline.",
    )
    @common.report_options
    @own("report")
    def report(**options: Any) -> None:
        from selfnpo_core.commands.report import run_report

        run_report(family.medium(options), options)

    yield report

    @click.command(
        short_help="The whole story on the model that ships with this package.",
        help="Train negative weights for the shipped toy model, sample with and without them, measure.",
    )
    @common.demo_options
    def demo(output: str | None, full: bool, seed: int, samples: int | None) -> None:
        from selfnpo_core.commands.demo import tell

        tell(family.demo(), output=None if output is None else Path(output), full=full, seed=seed, samples=samples)

    yield demo


def _own_options(family: AnyFamily) -> Callable[[str], common.Decorator]:
    """Command → a decorator with the family's own options of it."""
    return lambda command: family.options.get(command, common.stack())
