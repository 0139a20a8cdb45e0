"""The page: a Starlette application over the database and the two folders.

    GET  /                     what this is, a button to begin, a field for a code
    POST /participants         a new participant, then their page
    GET  /p/CODE               their next pair; thanks when all are answered
    POST /p/CODE/votes         {"pair", "question", "answer"} → 201; 409 if that is answered already
    GET  /p/CODE/media/TOKEN   one sample of theirs
    GET  /results/TOKEN        what the votes say; also …/results.json and …/votes.csv

Blind: samples have random names, drawn for each participant; what is sent is a copy without anything but the pixels,
and without headers that tell a file's age. No path of a file is in any address. Where others than this computer can
reach the page, all addresses begin with a secret, without which there is nothing but 404.
"""

import hmac
import logging
import re
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from socket import socket
from threading import Lock
from typing import Annotated, Any, Literal

import uvicorn
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from selfnpo_core.sampling.medium import ShownMedium
from selfnpo_core.study.pairs import Pair
from selfnpo_core.study.results import Results, percent, summarise, votes_csv
from selfnpo_core.study.trials import DAMAGED, Trial, plan_trials
from selfnpo_core.study.votes import Votes
from selfnpo_core.system.files import named_aside
from selfnpo_core.system.signals import StopSignals

log = logging.getLogger(__name__)

BODY_LIMIT = 16 * 1024
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Robots-Tag": "noindex",
}
_TELLING = ("etag", "last-modified")
_Name = Annotated[str, Field(max_length=64)]


class _Ballot(BaseModel):
    """What the page sends for one answer."""

    model_config = ConfigDict(strict=True, extra="forbid")
    pair: _Name
    question: _Name
    answer: Literal["left", "right", "same"]


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Copies of samples to send, made when they are first asked for."""

    pairs: Sequence[Pair]
    medium: ShownMedium
    folder: Path
    _lock: Lock = field(default_factory=Lock)

    def file(self, pair: int, arm: str) -> Path:
        """arm: a or b, or one of them damaged."""
        path = self.folder / f"{pair}-{arm}.{self.medium.suffix}"
        with self._lock:
            if not path.exists():
                copy = self.medium.damage if arm.endswith(DAMAGED) else self.medium.plain
                with named_aside(path) as aside:
                    copy(self.pairs[pair].files["a" if arm.startswith("a") else "b"], aside)
        return path


class Page:
    """The answers of all addresses."""

    def __init__(self, votes: Votes, media: Copies, names: Mapping[str, str], allowed_failures: int | None):
        """names: of the arms, for the results. allowed_failures: as of `summarise`."""
        self.votes, self.media, self.names, self.allowed_failures = votes, media, names, allowed_failures
        self.study = votes.study
        self.questions: Mapping[str, str] = dict(self.study["questions"])
        self.templates = Environment(
            loader=PackageLoader("selfnpo_core.study", "page"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.templates.filters["percent"] = percent

    async def start(self, request: Request) -> Response:
        return self._html(request, "start.html", unknown=False)

    async def enrol(self, request: Request) -> Response:
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise HTTPException(403, "begin from this study's own page")
        return RedirectResponse(request.url_for("pair", code=self.votes.enrol(self._plan)).path, 303)

    async def resume(self, request: Request) -> Response:
        code = request.query_params.get("code", "").strip().lower()
        if self.votes.participant(code) is None:
            return self._html(request, "start.html", unknown=True, status=404)
        return RedirectResponse(request.url_for("pair", code=code).path, 303)

    async def pair(self, request: Request) -> Response:
        participant = self._participant(request)
        shown = self.votes.next_trial(participant, len(self.questions))
        if shown is None:
            return self._html(request, "done.html")
        pair = self.media.pairs[shown.trial.pair]
        return self._html(request, "pair.html", shown=shown, prompt=pair.prompt)

    async def vote(self, request: Request) -> Response:
        participant = self._participant(request)
        try:
            ballot = _Ballot.model_validate_json(await _body(request))
        except ValidationError:
            raise HTTPException(400, "a vote is JSON with pair, question and answer") from None
        shown = self.votes.trial(participant, ballot.pair)
        if shown is None or ballot.question not in self.questions:
            raise HTTPException(404)
        if not self.votes.add(shown, participant, ballot.question, ballot.answer):
            return JSONResponse({"detail": "answered already"}, 409)
        return JSONResponse({"answered": len(shown.answered) + 1}, 201)

    async def sample(self, request: Request) -> Response:
        found = self.votes.sample(self._participant(request), request.path_params["token"])
        if found is None:
            raise HTTPException(404)
        path = await run_in_threadpool(self.media.file, *found)
        return FileResponse(path, media_type=self.media.medium.content_type)

    async def results(self, request: Request) -> Response:
        results = await self._results(request)
        return self._html(request, "results.html", results=results, names=self.names, here=request.url.path)

    async def results_json(self, request: Request) -> Response:
        return JSONResponse({"schema": 1, **(await self._results(request)).as_json()})

    async def results_csv(self, request: Request) -> Response:
        self._check_results_token(request)
        text = votes_csv(self.votes.all(), [(pair.prompt, pair.seed) for pair in self.media.pairs])
        headers = {"Content-Disposition": 'attachment; filename="votes.csv"'}
        return PlainTextResponse(text, media_type="text/csv", headers=headers)

    async def _results(self, request: Request) -> Results:
        self._check_results_token(request)
        votes = self.votes.all()
        return await run_in_threadpool(summarise, votes, self.study, self.names, self.allowed_failures)

    def _check_results_token(self, request: Request) -> None:
        if not same_secret(request.path_params["token"], self.votes.results_token):
            raise HTTPException(404)

    def _plan(self, participant: int) -> Sequence[Trial]:
        study = self.study
        return plan_trials(study["pairs"], study["attention_checks"], seed=study["seed"], participant=participant)

    def _participant(self, request: Request) -> int:
        number = self.votes.participant(request.path_params["code"])
        if number is None:
            raise HTTPException(404)
        return number

    def _html(self, request: Request, template: str, status: int = 200, **values: Any) -> Response:
        text = self.templates.get_template(template).render(
            root=request.scope.get("root_path", ""),
            code=request.path_params.get("code"),
            questions=self.questions,
            trials=self.study["pairs"] + self.study["attention_checks"],
            word=self.media.medium.unit,
            **values,
        )
        return HTMLResponse(text, status)


def same_secret(given: str, secret: str) -> bool:
    """Whether both are equal, in a time that does not tell how much is."""
    return hmac.compare_digest(given.encode(), secret.encode())


def application(page: Page, *, link_token: str | None) -> ASGIApp:
    """link_token: what all addresses must begin with; None where only this computer can reach the page."""
    static = Path(__file__).parent / "page" / "static"
    app = Starlette(
        routes=[
            Route("/", page.start),
            Route("/participants", page.enrol, methods=["POST"]),
            Route("/resume", page.resume),
            Route("/p/{code}", page.pair, name="pair"),
            Route("/p/{code}/votes", page.vote, methods=["POST"]),
            Route("/p/{code}/media/{token}", page.sample),
            Route("/results/{token}", page.results),
            Route("/results/{token}/results.json", page.results_json),
            Route("/results/{token}/votes.csv", page.results_csv),
            Mount("/static", StaticFiles(directory=static)),
        ],
        exception_handlers={sqlite3.OperationalError: _unsaved},
    )
    return _Guard(app, link_token)


def serve(app: ASGIApp, listener: socket, announce: Callable[[], None]) -> None:
    """Answer until SIGINT or SIGTERM. announce: called when the page can be asked for and a signal ends it well."""

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket] | None = None) -> None:
            await super().startup(sockets)
            announce()

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=2,
    )
    with StopSignals():  # uvicorn passes them on when it has ended
        Server(config).run(sockets=[listener])


class _Guard:
    """What surrounds the application: a secret in the address, the same headers on all answers, small requests only."""

    def __init__(self, app: ASGIApp, link_token: str | None):
        self.app, self.link_token = app, link_token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                for name in _TELLING:
                    del headers[name]
            await send(message)

        first = scope["path"].removeprefix("/").partition("/")[0]
        asked, app = Headers(scope=scope), self.app
        if self.link_token is None:
            name = re.sub(r":\d+$", "", asked.get("host", "")).strip("[]")
            if not is_loopback(name):  # a name of another site, made to lead here
                app = PlainTextResponse("this page is for this computer only: --host opens it to others", 403)
        elif same_secret(first, self.link_token):
            scope = {**scope, "root_path": f"/{first}"}
        else:
            app = PlainTextResponse("Not Found", 404)
        if int(asked.get("content-length", 0)) > BODY_LIMIT:
            app = PlainTextResponse("Content Too Large", 413, headers={"Connection": "close"})
        await app(scope, receive, send_guarded)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address can only be reached from this computer."""
    try:
        return host.lower() == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


async def _body(request: Request) -> bytes:
    """A request's body. Ends with 413 as soon as it is too large."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > BODY_LIMIT:
            raise HTTPException(413, headers={"Connection": "close"})
    return body


async def _unsaved(request: Request, error: Exception) -> Response:
    """The disk is full, or somebody holds the database."""
    log.error("a request failed: %s", error)
    return JSONResponse({"detail": "not saved"}, 503)
