"""The database: one vote a question, kept through a kill; other studies and other files are refused."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from selfnpo_core.errors import InputError
from selfnpo_core.study.trials import Trial, plan_trials
from selfnpo_core.study.votes import ALPHABET, Votes

STUDY = {"folders": "f00", "pairs": 3, "seed": 0, "attention_checks": 1, "questions": [["q", "Which?"], ["r", "And?"]]}
Q = 2


def trials(participant: int) -> list[Trial]:
    return plan_trials(3, 1, seed=0, participant=participant)


@pytest.fixture
def votes(tmp_path: Path) -> Votes:
    return Votes.open(tmp_path / "v.sqlite", STUDY)


def test_a_second_answer_does_not_change_the_first(votes: Votes) -> None:
    code = votes.enrol(trials)
    who = votes.participant(code)
    shown = votes.next_trial(who, Q)
    assert votes.add(shown, who, "q", "left")
    assert not votes.add(shown, who, "q", "right")
    assert [(vote.question, vote.answer) for vote in votes.all()] == [("q", "left")]
    with pytest.raises(sqlite3.IntegrityError):
        votes.add(shown, who, "r", "nonsense")
    assert len(votes.all()) == 1


def test_a_participant_goes_through_all_trials_once(votes: Votes) -> None:
    code, other = votes.enrol(trials), votes.enrol(trials)
    assert (votes.participant(code), votes.participant(other)) == (0, 1)
    assert votes.participant("nobody") is None
    seen = []
    while shown := votes.next_trial(0, Q):
        assert dict(shown.answered) == {}
        votes.add(shown, 0, "q", "left")
        again = votes.next_trial(0, Q)
        assert (again.token, dict(again.answered)) == (shown.token, {"q": "left"})
        votes.add(shown, 0, "r", "same")
        seen.append(shown.trial)
    assert seen == trials(0)
    assert votes.next_trial(1, Q).position == 0
    assert [vote.trial for vote in votes.all()] == [trial for trial in trials(0) for _ in range(2)]


def test_tokens_are_random_and_the_participants_own(votes: Votes) -> None:
    codes = {votes.enrol(trials) for _ in range(20)}
    assert len(codes) == 20
    assert all(set(code) <= {*ALPHABET, "-"} and len(code) == 14 for code in codes)
    first, second = votes.next_trial(0, Q), votes.next_trial(1, Q)
    tokens = {t for shown in (first, second) for t in (shown.token, shown.left_token, shown.right_token)}
    assert len(tokens) == 6
    assert all(len(token) == 22 for token in tokens)
    assert votes.sample(0, first.left_token) == (first.trial.pair, first.trial.left)
    assert votes.sample(0, first.right_token) == (first.trial.pair, first.trial.right)
    assert votes.sample(1, first.left_token) is None
    assert votes.sample(0, first.token) is None
    assert votes.trial(1, first.token) is None
    assert votes.trial(0, first.token) == first


def test_the_same_study_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.sqlite"
    votes = Votes.open(path, STUDY)
    secrets = (votes.link_token, votes.results_token, votes.enrol(trials))
    votes.close()
    assert path.stat().st_mode & 0o077 == 0
    votes = Votes.open(path, STUDY)
    assert (votes.link_token, votes.results_token) == secrets[:2]
    assert votes.participant(secrets[2]) == 0
    assert votes.study == STUDY
    for key, value in {"folders": "f01", "questions": [["q", "What?"]], "pairs": 2, "seed": 1}.items():
        with pytest.raises(InputError, match=f"holds the votes of another study \\({key}: there"):
            Votes.open(path, {**STUDY, key: value})
    assert Votes.open(path).study == STUDY


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        Votes.open(tmp_path / "gone.sqlite")
    assert not (tmp_path / "gone.sqlite").exists()
    with pytest.raises(InputError, match="its folder does not exist"):
        Votes.open(tmp_path / "gone" / "v.sqlite", STUDY)
    (tmp_path / "text").write_text("a list of things to do, long enough to be read\n" * 9)
    with pytest.raises(InputError, match="file is not a database"):
        Votes.open(tmp_path / "text", STUDY)
    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        other.execute("CREATE TABLE birds (name TEXT)")
    before = (tmp_path / "other.sqlite").read_bytes()
    for study in (STUDY, None):
        with pytest.raises(InputError, match="is no database of a study"):
            Votes.open(tmp_path / "other.sqlite", study)
    assert (tmp_path / "other.sqlite").read_bytes() == before
    (tmp_path / "empty.sqlite").touch()
    with pytest.raises(InputError, match="is no database of a study"):
        Votes.open(tmp_path / "empty.sqlite")


def test_votes_are_read_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Votes.open(tmp_path / "v.sqlite", STUDY).close()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {"v.sqlite"}
    monkeypatch.setattr(os, "access", lambda *_: False)
    votes = Votes.open(tmp_path / "v.sqlite")
    assert (votes.study, votes.all()) == (STUDY, [])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        votes.enrol(lambda _: [])


def test_votes_survive_a_kill(tmp_path: Path) -> None:
    """A process that says every vote it has made, and is killed while it makes them."""
    code = (
        "import sys; from pathlib import Path\n"
        "from selfnpo_core.study.votes import Votes\n"
        "from selfnpo_core.study.trials import plan_trials\n"
        "votes = Votes.open(Path(sys.argv[1]), {'questions': [['q', '?']]})\n"
        "votes.enrol(lambda n: plan_trials(500, 0, seed=0, participant=n))\n"
        "while shown := votes.next_trial(0, 1):\n"
        "    votes.add(shown, 0, 'q', 'left')\n"
        "    print(shown.position, flush=True)\n"
    )
    path = tmp_path / "v.sqlite"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as process:
        said = [int(process.stdout.readline()) for _ in range(40)]
        os.kill(process.pid, signal.SIGKILL)
        said += [int(line) for line in process.stdout]
    kept = [vote.position for vote in Votes.open(path).all()]
    assert kept[: len(said)] == said == list(range(len(said)))
    assert len(kept) <= len(said) + 1
