"""`study` of every family: what its options mean, the server's beginning and end, and results without a server."""

import logging
import re
import socket
import webbrowser
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch

from selfnpo_core.commands.family import AnyFamily, Options
from selfnpo_core.commands.printing import echo_table
from selfnpo_core.errors import InputError
from selfnpo_core.sampling.medium import ShownMedium
from selfnpo_core.study.pairs import Side, check_samples, digest, read_pairs, some
from selfnpo_core.study.results import Results, percent, summarise, votes_csv
from selfnpo_core.study.trials import default_checks
from selfnpo_core.study.votes import Votes
from selfnpo_core.system.files import write_json, write_text
from selfnpo_core.system.paths import check_file, check_folder

log = logging.getLogger(__name__)

NEEDED = ("starlette", "uvicorn", "jinja2")
QUESTIONS = {
    "preference": "Which do you prefer overall?",
    "alignment": "Which fits the text better?",
    "detail": "Which has the better details?",
}
_KEY = re.compile(r"[a-z0-9_-]{1,64}", re.IGNORECASE)


def run_study(family: AnyFamily, options: Options) -> None:
    """Serve the page until Ctrl-C, or with --results say what the votes say."""
    medium = family.medium(options)
    folders: dict[Side, Path] = {"a": Path(options["dir_a"]), "b": Path(options["dir_b"])}
    database = Path(options["database"] or f"study-{_name(folders['a'])}-{_name(folders['b'])}.sqlite")
    if options["results"]:
        for option in ("json", "csv"):
            if options[option]:
                check_folder(Path(options[option]).parent, f"--{option}")  # which is made
        _tell_results(medium, folders, database, options)
        return
    check_file(database, "--database")
    for option in ("json", "csv"):
        if options[option]:
            raise InputError(f"--{option} needs --results: the page has both files too")
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(f"study needs {' and '.join(missing)}: pip install '{family.program}[study]'")
    _serve(medium, folders, database, options)


def parse_questions(given: Sequence[str]) -> dict[str, str]:
    """--question KEY=TEXT, in their order; the usual three where none is given."""
    questions: dict[str, str] = {}
    for item in given:
        key, equals, text = item.partition("=")
        if not equals or not _KEY.fullmatch(key) or not text.strip():
            raise InputError(f"--question {item!r} is no KEY=TEXT: for example 'sharpness=Which is sharper?'")
        if key in questions:
            raise InputError(f"--question {key} is given twice: give each a key of its own")
        questions[key] = text.strip()
    return questions or dict(QUESTIONS)


def _serve(medium: ShownMedium, folders: Mapping[Side, Path], database: Path, options: Mapping[str, Any]) -> None:
    from selfnpo_core.study.server import Copies, Page, application, is_loopback, serve

    different = options["allow_different"]
    every = read_pairs(folders, medium, allow_different=different)
    pairs = some(every, options["limit"], torch.Generator().manual_seed(options["seed"]))
    checks = default_checks(len(pairs)) if options["attention_checks"] is None else options["attention_checks"]
    questions = parse_questions(options["question"])
    log.info("reading %d %ss", 2 * len(pairs), medium.unit)
    check_samples(pairs, medium, allow_different=different)
    study = {
        "folders": digest(every),
        "pairs": len(pairs),
        "seed": options["seed"],
        "attention_checks": checks,
        "questions": list(questions.items()),
    }
    with (
        _listen(options["host"], options["port"]) as listener,
        closing(Votes.open(database, study)) as votes,
        TemporaryDirectory(prefix="selfnpo-study-") as aside,
    ):
        token = None if is_loopback(options["host"]) else votes.link_token
        page = Page(
            votes,
            Copies(pairs=pairs, medium=medium, folder=Path(aside)),
            _names(folders),
            options["allow_failures"],
        )
        root = _root(options["host"], listener) + (f"/{token}" if token else "")

        def announce() -> None:
            click.echo(f"for participants: {root}/")
            click.echo(f"results:          {root}/results/{votes.results_token}")
            click.echo("Ctrl-C ends it; the same command goes on.")
            if options["open"]:
                webbrowser.open(f"{root}/")

        serve(application(page, link_token=token), listener, announce)
        click.echo(f"ended; {len(votes.all())} votes in {database}")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host} is no address here ({error}): use 127.0.0.1, or 0.0.0.0 for all") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # of two that begin at once, one fails here
    except OSError as error:
        listener.close()
        raise InputError(
            f"cannot listen on {host}, port {port} ({error.strerror}): choose another --port, or 0"
        ) from None
    return listener


def _root(host: str, listener: socket.socket) -> str:
    """The address of the page, by this computer's name where it is bound to all of its addresses."""
    name = socket.gethostname() if host in ("", "0.0.0.0", "::") else host
    return f"http://{f'[{name}]' if ':' in name else name}:{listener.getsockname()[1]}"


def _tell_results(
    medium: ShownMedium, folders: Mapping[Side, Path], database: Path, options: Mapping[str, Any]
) -> None:
    """All but the folders comes from the database."""
    every = read_pairs(folders, medium, allow_different=True)
    votes = Votes.open(database)
    votes.require("folders", digest(every))
    study = votes.study
    results = summarise(votes.all(), study, _names(folders), options["allow_failures"])
    if options["json"]:
        write_json(Path(options["json"]), {"schema": 1, **results.as_json()})
    if options["csv"]:
        pairs = some(every, study["pairs"], torch.Generator().manual_seed(study["seed"]))
        write_text(Path(options["csv"]), votes_csv(votes.all(), [(pair.prompt, pair.seed) for pair in pairs]))
    votes.close()
    _echo(results)


def _echo(results: Results) -> None:
    head = ["question", "A", "tie", "B", "win rate of A", "bootstrap", "alpha"]
    rows = [
        [
            answer.key,
            *(str(count) for count in (answer.wins, answer.ties, answer.losses)),
            percent(answer.wilson),
            percent(answer.bootstrap),
            "—" if answer.alpha is None else f"{answer.alpha:.2f}",
        ]
        for answer in results.answers
    ]
    click.echo(f"A: {results.names['a']}, B: {results.names['b']}, {results.pairs} pairs; 95 % intervals")
    echo_table(head, rows)
    click.echo(
        f"{results.participants} participants, {results.finished} finished; left out: {len(results.excluded)}, with "
        f"{results.excluded_votes} votes (more than {results.allowed_failures} of {results.checks} checks failed)"
    )


def _names(folders: Mapping[Side, Path]) -> dict[str, str]:
    return {arm: str(folder) for arm, folder in folders.items()}


def _name(folder: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name) or "folder"
