"""One page, in HTML and in Markdown, of what was measured of a run or of folders of samples."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from selfnpo_core.errors import InputError
from selfnpo_core.evaluation.intervals import Interval
from selfnpo_core.reporting import arms as comparing
from selfnpo_core.reporting import runs, words
from selfnpo_core.reporting.decomposition import kept_decomposition
from selfnpo_core.reporting.figures import Figure, read_figures
from selfnpo_core.reporting.words import Names, Verdict, escaped
from selfnpo_core.sampling.medium import Medium
from selfnpo_core.weights.model_card import with_measured

GENERATOR = "selfnpo report"
"""In every page and Markdown file of ours, which alone are written over."""
MARKS = (f'content="{GENERATOR}"', f"<!-- {GENERATOR} -->")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is to be written. card: a run's model card and its new text, where something was measured of the run."""

    html: str
    markdown: str
    card: tuple[Path, str] | None = None


def report_arms(folder: Path, medium: Medium, options: Mapping[str, Any]) -> Report:
    """Of samples, alone or compared. options: those of `report`."""
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
    return Report(html=_page("arms.html", {**about, "groups": groups, "why": why}), markdown=_whole(lines))


def report_run(folder: Path, options: Mapping[str, Any]) -> Report:
    """Of a training run. options: those of `report`."""
    for option in ("against", "by"):
        if options[option] is not None:
            raise InputError(f"--{option} is for folders of samples, and {folder} is a run: leave it out")
    run = runs.read_run(folder)
    measured = runs.measured(run, options["figures"])
    found = kept_decomposition(folder, run.npo)
    names = Names("", None) if measured is None else measured.names
    about = {
        "kind": "Report of a training run",
        "title": f"Negative weights for {run.recipe.model or run.path.resolve().name}",
        "warnings": runs.warnings(run, measured),
        "facts": runs.facts(run),
        "result": runs.result(run),
        "measured": measured,
        "decomposition": found,
        "conditions": [] if measured is None else measured.conditions,
        "sides": names.sides,
        **_figures({} if measured is None else measured.evaluated.metrics, names),
    }
    card = None if run.npo is None else run.npo.parent / runs.CARD
    filled = None
    if measured is not None and card is not None and card.is_file():
        filled = with_measured(card.read_text(encoding="utf-8"), "\n\n".join(_markdown(about)))
    shown = {
        "curves": runs.curves(run),
        "levels": [] if found is None else found.plots(),
        "grids": runs.grids(run),
        "recipe": run.recipe.model_dump(mode="json"),
    }
    html = _page("run.html", {**about, **shown})
    rows = [*about["facts"], *about["result"]]
    lines = [f"# {escaped(about['title'])}", words.markdown_table(("the run", ""), rows), *_markdown(about)]
    if found is not None:
        lines += ["## What the negative does", escaped(found.told), words.markdown_table(*found.table())]
    return Report(html=html, markdown=_whole(lines), card=None if filled is None or card is None else (card, filled))


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
    return "\n\n".join([MARKS[1], *parts]) + "\n"


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
