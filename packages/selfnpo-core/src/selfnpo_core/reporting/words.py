"""Figures in words and in Markdown: what a difference says, and what it does not."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from selfnpo_core.evaluation.intervals import Interval
from selfnpo_core.reporting.figures import Evaluated, Figure, Question, Study

ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}
LEVEL = 0.05
FEW = 2048
"""Samples, below which a Fréchet distance of Inception's 2,048 features has a covariance of less than full rank."""


class Names(NamedTuple):
    """What the arms are called: the one reported on, and the other if there is one."""

    one: str
    other: str | None

    @property
    def sides(self) -> list[str]:
        """The arms' names from the left to the right."""
        return [self.one] if self.other is None else [self.other, self.one]


class Verdict(NamedTuple):
    """tone: better, worse, changed, or open where a difference is not distinguishable from none."""

    tone: str
    text: str


def signed(interval: Interval) -> str:
    """A difference and its interval."""
    return _minus(f"{interval.value:+.3g} [{interval.low:+.3g}, {interval.high:+.3g}]")


def _minus(text: str) -> str:
    return text.replace("-", "−")


def percent(interval: Interval | None) -> str:
    if interval is None:
        return "—"
    return f"{100 * interval.value:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def probability(p: float | None) -> str:
    if p is None:
        return "—"
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def verdict(name: str, figure: Figure, names: Names, family: int) -> Verdict:
    """One sentence on one metric. family: how many metrics there are."""
    if names.other is None or (figure.change is None and figure.win_rate is None):
        return Verdict("open", f"{name}: {_alone(figure, names)}")
    if figure.change is None:
        tone, judged = _judged(figure.win_rate, 0.5, figure)
        return Verdict(tone, f"{name}: {names.one} wins {percent(figure.win_rate)} of the pairs, {judged}.")
    tone, judged = _judged(figure.change, 0, figure)
    tested = " (not corrected for the other metrics)" if figure.p_holm is None and family > 1 else ""
    if figure.p_holm is not None:
        tested = f" (p\u00a0{probability(figure.p)}; {probability(figure.p_holm)} by Holm's correction over {family})"
    return Verdict(tone, f"{name}: {signed(figure.change)} from “{names.other}” to “{names.one}”, {judged}{tested}.")


def _judged(interval: Interval | None, neutral: float, figure: Figure) -> tuple[str, str]:
    """Tone and words: a difference counts beyond its interval, and where p was corrected after that too."""
    if interval is None or not all(map(math.isfinite, interval)):
        return "open", "which is not finite, so no difference can be told"
    if not interval.excludes(neutral):
        return "open", "within its 95 % interval, so no difference can be told"
    if figure.p_holm is not None and not figure.p_holm < LEVEL:
        return "open", "beyond its 95 % interval, but not after the correction, so it may be chance"
    up = interval.value > neutral
    if figure.better == "neither":
        return "changed", f"beyond its 95 % interval and so {'higher' if up else 'lower'}"
    tone = "better" if up == (figure.better == "higher") else "worse"
    return tone, f"beyond its 95 % interval and so {tone}"


def _alone(figure: Figure, names: Names) -> str:
    if figure.value is None:
        return "not measured."
    if names.other is None:
        return f"{names.one} has {_or_dash(figure.value)}; alone it says nothing of a change."
    both = f"{names.one} has {_or_dash(figure.value)}, {names.other} {_or_dash(figure.against)}"
    return f"{both}; their difference was not tested."


def cautions(name: str, figure: Figure, names: Names) -> list[str]:
    """What else must be known of a metric."""
    if not figure.is_biased:
        return []
    if figure.limit is None:
        few = f"{name} of {figure.count} samples is mostly bias, and its limit for more samples cannot be told"
        return [f"{few}: it is no figure to compare with others'."]
    other = _minus(f", {names.other} {figure.against_limit.infinity:.3g}") if figure.against_limit else ""
    told = f"{name} is biased upwards at {figure.count} samples; extrapolated to infinitely many, {names.one} has"
    few = " So few samples leave that uncertain." if figure.count < FEW else ""
    if min(each.infinity for each in (figure.limit, figure.against_limit) if each) < 0:
        few = " A distance below 0 cannot be: the samples are too few."
    return [f"{told} {_minus(f'{figure.limit.infinity:.3g}')}{other}.{few}"]


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
    if interval.excludes(0.5):
        tone, told = "changed", f"beyond its 95 % interval: {'A' if interval.value > 0.5 else 'B'} is preferred"
    else:
        tone, told = "open", "within its 95 % interval, so no preference can be told"
    if question.bootstrap is None:
        told += " (as if votes were independent)"
    return Verdict(tone, f"{who} {percent(interval)} of {question.votes} votes, ties as half, {told}{agree}.")


def table(figures: Mapping[str, Figure], names: Names) -> tuple[list[str], list[list[str]]]:
    """Head and rows, as text."""
    head = ["metric", *names.sides]
    if names.other is not None:
        head += ["change", "win rate", "p", "p (Holm)"]
    rows = []
    for name, figure in figures.items():
        row = [f"{name} {ARROWS[figure.better]}".strip(), _or_dash(figure.value)]
        if names.other is not None:
            row.insert(1, _or_dash(figure.against))
            change = "—" if figure.change is None else signed(figure.change)
            tests = [probability(figure.p), probability(figure.p_holm)]
            row += [change, percent(figure.win_rate), *tests]
        rows.append(row)
    return head, rows


def _or_dash(interval: Interval | None) -> str:
    return "—" if interval is None else _minus(str(interval))


def legend(names: Names) -> str:
    told = "Brackets are 95 % intervals; ↑ more is better, ↓ less is."
    return told if names.other is None else f"{told} A change is “{names.one}” minus “{names.other}”, pair by pair."


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
    """One line of Markdown that shows a value as text: no markup, no HTML."""
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", line)
