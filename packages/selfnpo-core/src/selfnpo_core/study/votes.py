"""The database of a study: who takes part, what each sees, and the votes. One SQLite file, one transaction a vote.

A participant is a number and a random code; nothing else is known of anybody. Everything random is drawn once, when a
study or a participant begins, and kept, so that a server that was killed goes on where it was.
"""

import json
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfnpo_core.errors import InputError
from selfnpo_core.study.trials import Trial

APPLICATION, VERSION = 0x534E504F, 1
"""SQLite's application_id and user_version of these files."""
ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"
"""Of participants' codes: nothing that looks like something else."""

_SCHEMA = f"""
CREATE TABLE study (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE participants (number INTEGER PRIMARY KEY, code TEXT NOT NULL UNIQUE);
CREATE TABLE trials (
    participant INTEGER NOT NULL REFERENCES participants,
    position INTEGER NOT NULL,
    token TEXT NOT NULL UNIQUE,
    pair INTEGER NOT NULL,
    left_arm TEXT NOT NULL,
    left_token TEXT NOT NULL UNIQUE,
    right_arm TEXT NOT NULL,
    right_token TEXT NOT NULL UNIQUE,
    PRIMARY KEY (participant, position)
);
CREATE TABLE votes (
    participant INTEGER NOT NULL,
    position INTEGER NOT NULL,
    question TEXT NOT NULL,
    answer TEXT NOT NULL CHECK (answer IN ('left', 'right', 'same')),
    UNIQUE (participant, position, question),
    FOREIGN KEY (participant, position) REFERENCES trials
);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
"""


@dataclass(frozen=True, kw_only=True)
class OpenTrial:
    """A participant's trial under its tokens, with the questions that are answered already."""

    position: int
    count: int
    """Of all the participant's trials."""
    token: str
    trial: Trial
    left_token: str
    right_token: str
    answered: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Vote:
    """One answer of one participant."""

    participant: int
    position: int
    trial: Trial
    question: str
    answer: str


class Votes:
    """The database. Used by one thread at a time; processes may share the file."""

    def __init__(self, path: Path, connection: sqlite3.Connection):
        self.path, self._db = path, connection

    @classmethod
    def open(cls, path: Path, study: Mapping[str, Any] | None = None) -> "Votes":
        """An existing study's database, only to read; or with `study` one to write to, perhaps a new one.

        study: what must stay the same while votes come in, as JSON knows it. Raises `InputError` for a file that holds
        another study, or is none of ours.
        """
        if study is None and not path.is_file():
            raise InputError(f"{path} does not exist: nobody has voted in this study, or it has another --database")
        if not path.parent.is_dir():
            raise InputError(f"{path} cannot be made: its folder does not exist")
        try:
            votes = cls(path, _reading(path) if study is None else _connect(path))
            votes._begin(study)
        except sqlite3.DatabaseError as error:
            raise InputError(f"{path} cannot be used as a database ({error}): choose another --database") from None
        return votes

    def close(self) -> None:
        self._db.close()

    def _begin(self, study: Mapping[str, Any] | None) -> None:
        self._refuse_foreign(new=study is not None)  # before anything in the file is changed
        if study is None:
            return
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            self._db.execute(f"PRAGMA {pragma}")
        with self._change() as db:
            if self._refuse_foreign(new=True):
                for statement in _SCHEMA.strip().removesuffix(";").split(";\n"):
                    db.execute(statement)
                values = {"study": json.dumps(study), "link": _secret(), "results": _secret()}
                db.executemany("INSERT INTO study VALUES (?, ?)", values.items())
        for name, value in json.loads(json.dumps(study)).items():
            self.require(name, value)

    def _refuse_foreign(self, *, new: bool) -> bool:
        """Whether the file is empty, as a new one may be. Raises `InputError` for one that is not ours."""
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if new and application == 0 and tables == 0:
            return True
        if application != APPLICATION:
            raise InputError(f"{self.path} is no database of a study: choose another --database")
        if version != VERSION:
            raise InputError(f"{self.path} was made by another version of this program: choose another --database")
        return False

    def require(self, name: str, value: Any) -> None:
        """Raise `InputError` unless the study that the file holds has this value."""
        if (old := self.study.get(name)) != value:
            raise InputError(
                f"{self.path} holds the votes of another study ({name}: there {_short(old)}, here {_short(value)}): "
                "repeat the command that began it, or choose another --database"
            )

    @property
    def study(self) -> dict[str, Any]:
        """What the study was begun with."""
        found: dict[str, Any] = json.loads(self._value("study"))
        return found

    @property
    def link_token(self) -> str:
        """Part of participants' links where others than this computer can reach the page."""
        return self._value("link")

    @property
    def results_token(self) -> str:
        """Part of the results page's link."""
        return self._value("results")

    def enrol(self, plan: Callable[[int], Sequence[Trial]]) -> str:
        """A new participant's code. plan: their number, from 0 → what they see."""
        code = "-".join("".join(secrets.choice(ALPHABET) for _ in range(4)) for _ in range(3))
        with self._change() as db:
            (number,) = db.execute("SELECT count(*) FROM participants").fetchone()
            db.execute("INSERT INTO participants VALUES (?, ?)", (number, code))
            rows = [
                (number, position, _secret(), trial.pair, trial.left, _secret(), trial.right, _secret())
                for position, trial in enumerate(plan(number))
            ]
            db.executemany("INSERT INTO trials VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        return code

    def participant(self, code: str) -> int | None:
        """The number of the participant who was given a code."""
        found = self._db.execute("SELECT number FROM participants WHERE code = ?", (code,)).fetchone()
        return None if found is None else found[0]

    def next_trial(self, participant: int, questions: int) -> OpenTrial | None:
        """The first trial with fewer answers than questions; None when all are answered."""
        where = "(SELECT count(*) FROM votes v WHERE (v.participant, v.position) = (t.participant, t.position)) < ?"
        return self._shown(participant, where, questions)

    def trial(self, participant: int, token: str) -> OpenTrial | None:
        """The trial that a token names for this participant."""
        return self._shown(participant, "t.token = ?", token)

    def sample(self, participant: int, token: str) -> tuple[int, str] | None:
        """Pair and arm of the sample that a token names for this participant."""
        found = self._shown(participant, "? IN (t.left_token, t.right_token)", token)
        if found is None:
            return None
        return found.trial.pair, found.trial.left if token == found.left_token else found.trial.right

    def add(self, shown: OpenTrial, participant: int, question: str, answer: str) -> bool:
        """Put a vote on the disk. False, and nothing is changed, if there is one already."""
        row = (participant, shown.position, question, answer)
        with self._change() as db:
            return db.execute("INSERT INTO votes VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", row).rowcount == 1

    def all(self) -> list[Vote]:
        """Every vote, participant by participant in the order of their trials."""
        rows = self._db.execute(
            "SELECT participant, position, pair, left_arm, right_arm, question, answer FROM votes "
            "JOIN trials USING (participant, position) ORDER BY participant, position, votes.rowid"
        )
        return [
            Vote(
                participant=participant,
                position=position,
                trial=Trial(pair=pair, left=left, right=right),
                question=question,
                answer=answer,
            )
            for participant, position, pair, left, right, question, answer in rows
        ]

    def _shown(self, participant: int, where: str, value: object) -> OpenTrial | None:
        found = self._db.execute(
            "SELECT position, (SELECT count(*) FROM trials c WHERE c.participant = t.participant), token, pair, "
            "left_arm, right_arm, left_token, right_token FROM trials t "
            f"WHERE participant = ? AND {where} ORDER BY position LIMIT 1",
            (participant, value),
        ).fetchone()
        if found is None:
            return None
        position, count, token, pair, left, right, left_token, right_token = found
        answers = self._db.execute(
            "SELECT question, answer FROM votes WHERE participant = ? AND position = ?", (participant, position)
        )
        return OpenTrial(
            position=position,
            count=count,
            token=token,
            trial=Trial(pair=pair, left=left, right=right),
            left_token=left_token,
            right_token=right_token,
            answered=dict(answers.fetchall()),
        )

    def _value(self, name: str) -> str:
        (value,) = self._db.execute("SELECT value FROM study WHERE name = ?", (name,)).fetchone()
        return str(value)

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """One transaction: on the disk when the block ends, or without a trace when it fails."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise


def _connect(path: Path) -> sqlite3.Connection:
    """Open the file, which only its owner may read: it holds the links' secrets."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    return sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)


def _reading(path: Path) -> sqlite3.Connection:
    """Open the file, which nothing here changes; where its folder is read-only, without SQLite's own files beside it.

    Those are there while others write to it: then they are read too.
    """
    place = path.absolute()
    alone = not os.access(place.parent, os.W_OK) and not place.with_name(f"{place.name}-wal").exists()
    return sqlite3.connect(
        f"{place.as_uri()}?mode=ro{'&immutable=1' if alone else ''}",
        uri=True,
        timeout=10,
        isolation_level=None,
        check_same_thread=False,
    )


def _secret() -> str:
    return secrets.token_urlsafe(16)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:39] + "…"
