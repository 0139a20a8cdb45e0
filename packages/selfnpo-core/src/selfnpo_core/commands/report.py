"""`report` of every family: what its folder is, and one page and Markdown of what was measured there."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from jinja2 import Environment, PackageLoader, StrictUndefined

from selfnpo_core.errors import InputError
from selfnpo_core.evaluation.intervals import Interval
from selfnpo_core.reporting import arms as comparing
from selfnpo_core.reporting import runs, words
from selfnpo_core.reporting.figures import Figure, read_figures
from selfnpo_core.reporting.words import Names, Verdict, escaped
from selfnpo_core.sampling.medium import Medium
from selfnpo_core.sampling.sample_folder import METADATA, REPORT
from selfnpo_core.system.files import write_text
from selfnpo_core.training.run_folder import holds_run
from selfnpo_core.weights.model_card import with_measured

GENERATOR = "selfnpo report"
"""In every page and Markdown file of ours, which alone are written over."""
_MARKS = (f'content="{GENERATOR}"', f"<!-- {GENERATOR} -->")
_HEAD = 1024
"""Characters, within which a file says that it is ours."""


def run_report(medium: Medium, options: Mapping[str, Any]) -> None:
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
        html, markdown = _of_run(folder, options)
    elif comparing.is_compared(folder) or (folder / METADATA).is_file():
        html, markdown = _of_arms(folder, medium, options)
    else:
        raise InputError(f"{folder} is neither a run nor a folder of samples: it has no config.yaml, no {METADATA}")
    for target, text in zip(targets, (html, markdown), strict=False):
        write_text(target, _writable(text))
    click.echo(f"report in {' and '.join(map(str, targets))}")


def _writable(text: str) -> str:
    """JSON may hold half a character, which a file cannot."""
    return text.encode(errors="replace").decode()


def _check_target(target: Path) -> None:
    """What is there already must be a report."""
    if target.is_dir() or not target.parent.is_dir():
        raise InputError(f"{target} cannot be written: give a file in a folder that is there")
    if target.exists():
        with target.open(encoding="utf-8", errors="replace") as file:
            head = file.read(_HEAD)
        if not any(mark in head for mark in _MARKS):
            raise InputError(f"{target} is no report, and is not written over: choose another name")


def _of_arms(folder: Path, medium: Medium, options: Mapping[str, Any]) -> tuple[str, str]:
    against = None if options["against"] is None else Path(options["against"])
    given = {name: read_figures(Path(name)) for name in options["figures"]}
    arms = comparing.read_arms(folder, against, medium)
    told = comparing.gather(arms, given)
    groups, why = comparing.groups(arms, told, medium, by=options["by"], most=options["count"], seed=options["seed"])
    figures, names = told.metrics, arms.names
    studies = [
        {**study.model_dump(), "verdicts": [words.preferred(question, study) for question in study.questions]}
        for study in told.studies
    ]
    about = {
        "kind": f"Report of {medium.unit}s",
        "title": comparing.title(arms),
        "warnings": comparing.warnings(arms, told),
        "conditions": comparing.conditions(arms),
        "sides": names.sides,
        "studies": studies,
        **_figures(figures, names),
    }
    lines = [f"# {escaped(about['title'])}", *_markdown(about), *_votes(studies)]
    return _page("arms.html", {**about, "groups": groups, "why": why}), _whole(lines)


def _of_run(folder: Path, options: Mapping[str, Any]) -> tuple[str, str]:
    """The model card is written here: it belongs to the run, not to the page."""
    for option in ("against", "by"):
        if options[option] is not None:
            raise InputError(f"--{option} is for folders of samples, and {folder} is a run: leave it out")
    run = runs.read_run(folder)
    measured = runs.measured(run, options["figures"])
    names = Names("", None) if measured is None else measured.names
    about = {
        "kind": "Report of a training run",
        "title": f"Negative weights for {run.recipe.model or run.path.resolve().name}",
        "warnings": runs.warnings(run, measured),
        "facts": runs.facts(run),
        "result": runs.result(run),
        "measured": measured,
        "conditions": [] if measured is None else measured.conditions,
        "sides": names.sides,
        **_figures({} if measured is None else measured.evaluated.metrics, names),
    }
    card = None if run.npo is None else run.npo.parent / runs.CARD
    filled = None
    if measured is not None and card is not None and card.is_file():
        filled = with_measured(card.read_text(encoding="utf-8"), "\n\n".join(_markdown(about)))
    shown = {"curves": runs.curves(run), "grids": runs.grids(run), "recipe": run.recipe.model_dump(mode="json")}
    html = _page("run.html", {**about, **shown})
    if filled is not None and card is not None:
        write_text(card, _writable(filled))
        click.echo(f"what was measured is in {card}")
    rows = [*about["facts"], *about["result"]]
    lines = [f"# {escaped(about['title'])}", words.markdown_table(("the run", ""), rows), *_markdown(about)]
    return html, _whole(lines)


def _figures(figures: Mapping[str, Figure], names: Names) -> dict[str, Any]:
    head, rows = words.table(figures, names)
    verdicts = [words.verdict(name, figure, names, len(figures)) for name, figure in figures.items()]
    return {"figures": figures, "head": head, "rows": rows, "verdicts": verdicts, "legend": words.legend(names)}


def _markdown(about: Mapping[str, Any]) -> list[str]:
    """Paragraphs below a heading of their own."""
    parts = ["## Measured"]
    if not about["verdicts"]:
        return [*parts, "Nothing: there are no figures by `evaluate`.", *_listed("Mind:", about["warnings"])]
    parts += [words.markdown_table(about["head"], about["rows"]), about["legend"]]
    parts += [_bullets(about["verdicts"]), *_listed("Mind:", about["warnings"])]
    head = ("compared", *about["sides"])
    rows = [(key, *values, *[values[0]] * (len(head) - 1 - len(values))) for key, values in about["conditions"]]
    return [*parts, words.markdown_table(head, rows)]


def _votes(studies: Sequence[Mapping[str, Any]]) -> list[str]:
    return [part for study in studies for part in ("## What people prefer", _bullets(study["verdicts"]))]


def _bullets(verdicts: Sequence[Verdict]) -> str:
    return "\n".join(f"- {escaped(verdict.text)}" for verdict in verdicts)


def _listed(head: str, lines: Sequence[str]) -> list[str]:
    return [head + "\n\n" + "\n".join(f"- {escaped(line)}" for line in lines)] if lines else []


def _whole(parts: Sequence[str]) -> str:
    return "\n\n".join([_MARKS[1], *parts]) + "\n"


def _page(name: str, values: Mapping[str, Any]) -> str:
    """All that comes from outside is escaped; only our own plots are not."""
    templates = Environment(
        loader=PackageLoader("selfnpo_core.reporting", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"signed": words.signed, "finite": _is_finite}
    packages = ("selfnpo-core", "torch", "diffusers")
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
    return templates.get_template(name).render(**values, generator=GENERATOR, versions=versions) + "\n"


def _is_finite(interval: Interval) -> bool:
    return all(map(math.isfinite, interval))
