"""Figures in words and in Markdown: what can be told from a difference, and what cannot."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from selfnpo_core.evaluation.intervals import Interval
from selfnpo_core.reporting.figures import Evaluated, Figure, Question, Study, is_told

ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}
LEVEL = 0.05
FEW = 2048
"""Samples, below which a Fréchet distance of Inception's 2,048 features has a covariance of less than full rank."""


class Names(NamedTuple):
    """What the arms are called: the one reported on, and the other if there is one."""

    one: str
    other: str | None


class Verdict(NamedTuple):
    """tone: better, worse, changed, or open where a difference cannot be told from none."""

    tone: str
    text: str


def signed(interval: Interval) -> str:
    """A difference and its interval."""
    return f"{interval.value:+.3g} [{interval.low:+.3g}, {interval.high:+.3g}]"


def percent(interval: Interval | None) -> str:
    if interval is None:
        return "—"
    return f"{100 * interval.value:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def probability(p: float | None) -> str:
    if p is None:
        return "—"
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def verdict(name: str, figure: Figure, names: Names, family: int) -> Verdict:
    """One sentence on one metric. family: how many metrics were tested together."""
    if names.other is None or (figure.change is None and figure.win_rate is None):
        return Verdict("open", f"{name}: {_alone(figure, names)}")
    if figure.change is None:
        tone, judged = _judged(is_told(figure.win_rate, 0.5), figure.win_rate, 0.5, figure)
        return Verdict(tone, f"{name}: {names.one} wins {percent(figure.win_rate)} of the pairs, {judged}.")
    tone, judged = _judged(is_told(figure.change), figure.change, 0, figure)
    tested = ""
    if figure.p_holm is not None:
        tested = f" (p {probability(figure.p)}, {probability(figure.p_holm)} by Holm's correction over {family})"
        if tone != "open" and not figure.p_holm < LEVEL:
            tone, judged = "open", f"{judged}, but it does not outlast the correction, so it may be chance"
    return Verdict(tone, f"{name}: {names.one} − {names.other} is {signed(figure.change)}, {judged}{tested}.")


def _judged(told: bool, interval: Interval | None, neutral: float, figure: Figure) -> tuple[str, str]:
    if interval is None or not told:
        return "open", "within its 95 % interval: it cannot be told from no difference"
    up = interval.value > neutral
    if figure.better == "neither":
        return "changed", f"beyond its 95 % interval: {'higher' if up else 'lower'}"
    tone = "better" if up == (figure.better == "higher") else "worse"
    return tone, f"beyond its 95 % interval: {tone}"


def _alone(figure: Figure, names: Names) -> str:
    if figure.value is None:
        return "not measured."
    if names.other is None:
        return f"{names.one} has {figure.value}; alone it says nothing of a change."
    return f"{names.one} has {figure.value}, {names.other} {_or_dash(figure.against)}; their difference was not tested."


def cautions(name: str, figure: Figure, names: Names) -> list[str]:
    """What else must be known of a metric."""
    if not figure.is_biased:
        return []
    if figure.limit is None:
        few = f"{name} of {figure.count} samples is mostly bias, and its limit for more samples cannot be told"
        return [f"{few}: it is no figure to compare with others'."]
    other = f", {names.other} {figure.against_limit.infinity:.3g}" if figure.against_limit else ""
    told = f"{name} is biased upwards at {figure.count} samples; extrapolated to infinitely many, {names.one} has"
    few = " So few samples leave that uncertain." if figure.count < FEW else ""
    if min(each.infinity for each in (figure.limit, figure.against_limit) if each) < 0:
        few = " A distance below 0 cannot be: the samples are too few."
    return [f"{told} {figure.limit.infinity:.3g}{other}.{few}"]


def preferred(question: Question, study: Study) -> Verdict:
    """One sentence on one question of a study."""
    if question.win_rate is None or not question.votes:
        return Verdict("open", f"“{question.text}” has no votes.")
    bounds = question.bootstrap or question.wilson
    who = f"“{question.text}” A ({study.arms['a']}) is preferred to B ({study.arms['b']}) in"
    agree = "" if question.alpha is None else f"; Krippendorff's α of the participants is {question.alpha:.2f}"
    if bounds is None:
        return Verdict("open", f"{who} {100 * question.win_rate:.1f} % of {question.votes} votes{agree}.")
    interval = Interval(question.win_rate, *bounds)
    if is_told(interval, 0.5):
        tone, told = "changed", f"beyond its 95 % interval: {'A' if interval.value > 0.5 else 'B'} is preferred"
    else:
        tone, told = "open", "within its 95 % interval: no preference can be told"
    if question.bootstrap is None:
        told += " (as if votes were independent)"
    return Verdict(tone, f"{who} {percent(interval)} of {question.votes} votes, ties as half, {told}{agree}.")


def table(figures: Mapping[str, Figure], names: Names) -> tuple[list[str], list[list[str]]]:
    """Head and rows, as text."""
    head = ["metric", names.one]
    if names.other is not None:
        head += [names.other, "change", "win rate", "p", "p (Holm)"]
    rows = []
    for name, figure in figures.items():
        row = [f"{name} {ARROWS[figure.better]}".strip(), _or_dash(figure.value)]
        if names.other is not None:
            change = "—" if figure.change is None else signed(figure.change)
            tests = [probability(figure.p), probability(figure.p_holm)]
            row += [_or_dash(figure.against), change, percent(figure.win_rate), *tests]
        rows.append(row)
    return head, rows


def _or_dash(interval: Interval | None) -> str:
    return "—" if interval is None else str(interval)


def tested(figures: Mapping[str, Figure]) -> int:
    """How many metrics Holm's correction is over."""
    return sum(figure.p_holm is not None for figure in figures.values())


def spoilt(evaluated: Evaluated) -> list[str]:
    """What `evaluate` left out or let pass."""
    found = []
    if evaluated.skipped:
        first = evaluated.skipped[0]
        more = f" and {len(evaluated.skipped) - 1} more" if len(evaluated.skipped) > 1 else ""
        found.append(f"Left out of the figures: {first.folder}/{first.file} ({first.reason}){more}.")
    if evaluated.different:
        found.append(f"The folders differ in {', '.join(evaluated.different)}, which the figures show too.")
    return found


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(escaped, line))} |" for line in lines)


def escaped(text: Any) -> str:
    """Anything as text of one line of Markdown: no markup, no HTML."""
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", line)
