"""`report`: what its folder is, and one page and Markdown of what was measured there."""

from pathlib import Path

import click

from selfnpo_core.commands.family import Options
from selfnpo_core.errors import InputError
from selfnpo_core.reporting.arms import is_compared
from selfnpo_core.reporting.pages import MARKS, report_arms, report_run
from selfnpo_core.sampling.medium import Medium
from selfnpo_core.sampling.sample_folder import METADATA, REPORT
from selfnpo_core.system.files import write_text
from selfnpo_core.system.paths import check_file
from selfnpo_core.training.run_folder import holds_run

_HEAD = 1024
"""Characters, within which a file says that it is ours."""


def run_report(medium: Medium, options: Options) -> None:
    """Write the page, and Markdown if it is asked for. Of a run, its model card gets what was measured."""
    folder = Path(options["folder"])
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give a run, a folder that `compare` made, or one of samples")
    output = Path(options["output"] or folder / REPORT)
    targets = [output] if options["markdown"] is None else [output, Path(options["markdown"])]
    for target in targets:
        _check_target(target)
    if len(targets) == 2 and targets[0].resolve() == targets[1].resolve():
        raise InputError(f"--output and --markdown are both {output}: give two files")
    if holds_run(folder):
        report = report_run(folder, options)
    elif is_compared(folder) or (folder / METADATA).is_file():
        report = report_arms(folder, medium, options)
    else:
        raise InputError(f"{folder} is neither a run nor a folder of samples: it has no config.yaml, no {METADATA}")
    if report.card is not None:
        card, filled = report.card
        write_text(card, _writable(filled))
        click.echo(f"what was measured is in {card}")
    for target, text in zip(targets, (report.html, report.markdown), strict=False):
        write_text(target, _writable(text))
    click.echo(f"report in {' and '.join(map(str, targets))}")


def _writable(text: str) -> str:
    """JSON may hold half a character, which a file cannot."""
    return text.encode(errors="replace").decode()


def _check_target(target: Path) -> None:
    """What is there already must be a report."""
    check_file(target, "report")
    if target.exists():
        with target.open(encoding="utf-8", errors="replace") as file:
            head = file.read(_HEAD)
        if not any(mark in head for mark in MARKS):
            raise InputError(f"{target} is no report, and is not written over: choose another name")
