"""What the votes say: for each question how often arm a was preferred to arm b, how sure that is, and who was left out.

Of every question: wins, losses and ties of arm a; its win rate with ties as half a win, with Wilson's interval, as if
all votes were independent, and the interval of a bootstrap over participants and pairs, which need not suppose so; and
how much the participants agree (Krippendorff's alpha).

Participants who fail more attention checks than allowed are left out, and counted. A check is failed if its first
question is not answered for the undamaged sample. Who has not finished counts with the votes there are.
"""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from selfnpo_core.evaluation import Interval, bootstrap_crossed, krippendorff_alpha, wilson
from selfnpo_core.study.votes import Vote

POINTS = {"a": 1.0, "same": 0.5, "b": 0.0}


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What was answered to one question, attention checks aside."""

    key: str
    text: str
    wins: int
    ties: int
    losses: int
    wilson: Interval | None
    bootstrap: Interval | None
    """With the win rate as value; None where nobody has voted."""
    alpha: float | None

    @property
    def votes(self) -> int:
        return self.wins + self.ties + self.losses


@dataclass(frozen=True, kw_only=True)
class Results:
    """The study as it stands."""

    names: Mapping[str, str]
    """What the arms are called."""
    pairs: int
    participants: int
    """Who count."""
    finished: int
    """Of them."""
    excluded: Mapping[int, int]
    """Participants who are left out, and how many checks they failed."""
    excluded_votes: int
    checks: int
    allowed_failures: int
    answers: Sequence[Answers]

    def as_json(self) -> dict[str, Any]:
        """What --json writes."""
        return {
            "arms": dict(self.names),
            "pairs": self.pairs,
            "participants": {"counted": self.participants, "finished": self.finished, "excluded": len(self.excluded)},
            "attention_checks": self.checks,
            "allowed_failures": self.allowed_failures,
            "excluded": [{"participant": number, "failed": failed} for number, failed in self.excluded.items()],
            "excluded_votes": self.excluded_votes,
            "questions": [
                {
                    "key": answer.key,
                    "text": answer.text,
                    "votes": answer.votes,
                    "wins": answer.wins,
                    "ties": answer.ties,
                    "losses": answer.losses,
                    "win_rate": None if answer.wilson is None else answer.wilson.value,
                    "wilson": _bounds(answer.wilson),
                    "bootstrap": _bounds(answer.bootstrap),
                    "alpha": answer.alpha,
                }
                for answer in self.answers
            ],
        }


def default_allowed(checks: int) -> int:
    """The number of failed checks for which nobody is left out: a quarter of all."""
    return checks // 4


def summarise(
    votes: Sequence[Vote], study: Mapping[str, Any], names: Mapping[str, str], allowed_failures: int | None = None
) -> Results:
    """votes: all of the study. study: what the database was begun with. names: of the arms."""
    questions: Mapping[str, str] = dict(study["questions"])
    allowed = default_allowed(study["attention_checks"]) if allowed_failures is None else allowed_failures
    failed = _failed(votes, next(iter(questions)))
    excluded = {number: count for number, count in sorted(failed.items()) if count > allowed}
    kept = [vote for vote in votes if vote.participant not in excluded]
    answered = Counter(vote.participant for vote in kept)
    in_all = (study["pairs"] + study["attention_checks"]) * len(questions)
    return Results(
        names=names,
        pairs=study["pairs"],
        participants=len(answered),
        finished=sum(count == in_all for count in answered.values()),
        excluded=excluded,
        excluded_votes=len(votes) - len(kept),
        checks=study["attention_checks"],
        allowed_failures=allowed,
        answers=[
            _answers(key, text, [vote for vote in kept if vote.question == key and not vote.trial.check])
            for key, text in questions.items()
        ],
    )


def _failed(votes: Sequence[Vote], question: str) -> Counter[int]:
    """Failed checks of each participant."""
    checks = [vote for vote in votes if vote.trial.check and vote.question == question]
    return Counter(vote.participant for vote in checks if not vote.trial.passed(vote.answer))


def _answers(key: str, text: str, votes: Sequence[Vote]) -> Answers:
    choices = [vote.trial.choice(vote.answer) for vote in votes]
    wins, ties, losses = (choices.count(choice) for choice in POINTS)
    units: dict[int, list[str]] = {}
    for vote, choice in zip(votes, choices, strict=True):
        units.setdefault(vote.trial.pair, []).append(choice)
    return Answers(
        key=key,
        text=text,
        wins=wins,
        ties=ties,
        losses=losses,
        wilson=wilson(wins + ties / 2, len(votes)) if votes else None,
        bootstrap=_clipped(bootstrap_crossed(_table(votes, choices), generator=torch.Generator().manual_seed(0))),
        alpha=krippendorff_alpha(units.values()),
    )


def _table(votes: Sequence[Vote], choices: Sequence[str]) -> torch.Tensor:
    """Points of arm a, (participants, pairs), NaN where there is no vote."""
    rows = {number: row for row, number in enumerate(sorted({vote.participant for vote in votes}))}
    columns = {pair: column for column, pair in enumerate(sorted({vote.trial.pair for vote in votes}))}
    table = torch.full((len(rows), len(columns)), torch.nan, dtype=torch.float64)
    for vote, choice in zip(votes, choices, strict=True):
        table[rows[vote.participant], columns[vote.trial.pair]] = POINTS[choice]
    return table


def _clipped(interval: Interval | None) -> Interval | None:
    return interval and Interval(interval.value, max(0.0, interval.low), min(1.0, interval.high))


def _bounds(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def percent(interval: Interval | None) -> str:
    """A share and its interval, such as 62.5 % [48.1, 75.0]."""
    if interval is None:
        return "—"
    return f"{100 * interval.value:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def votes_csv(votes: Sequence[Vote], prompts: Sequence[tuple[str, int]]) -> str:
    """A line a vote, those of attention checks and of participants who are left out among them.

    prompts: prompt and seed of every pair. Participants are numbers: with their codes others could vote as them.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = "participant trial pair prompt seed left right question answer preferred check"
    writer.writerow(head.split())
    for vote in votes:
        trial = vote.trial
        sides = [trial.left, trial.right, vote.question, vote.answer, trial.choice(vote.answer), int(trial.check)]
        writer.writerow([vote.participant, vote.position, trial.pair, *prompts[trial.pair], *sides])
    return out.getvalue()
