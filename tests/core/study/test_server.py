"""The page: what it answers, what it refuses, and that nothing tells which arm a picture is from."""

import io
import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient
from tests.core.study.drawn import MEDIUM, draw_folders

from selfnpo_core.study.pairs import read_pairs
from selfnpo_core.study.server import BODY_LIMIT, Copies, Page, application, is_loopback
from selfnpo_core.study.votes import Votes

QUESTIONS = [["overall", "Which <b>?"], ["detail", "And?"]]
STUDY = {"folders": "f", "pairs": 4, "seed": 0, "attention_checks": 1, "questions": QUESTIONS}


@pytest.fixture
def votes(tmp_path: Path) -> Votes:
    return Votes.open(tmp_path / "v.sqlite", STUDY)


@pytest.fixture
def page(tmp_path: Path, votes: Votes) -> Page:
    folders = draw_folders(tmp_path)
    os.utime(folders["a"] / "00000-70.png", (1, 1))
    (tmp_path / "aside").mkdir()
    media = Copies(pairs=read_pairs(folders, MEDIUM), medium=MEDIUM, folder=tmp_path / "aside")
    return Page(votes, media, {"a": "red", "b": "blue"}, None)


@pytest.fixture
def client(page: Page) -> TestClient:
    return TestClient(application(page, link_token=None), base_url="http://127.0.0.1:8000")


def begin(client: TestClient) -> str:
    """A participant's address."""
    answer = client.post("/participants", follow_redirects=False)
    assert answer.status_code == 303
    return answer.headers["location"]


def found(pattern: str, text: str) -> list[str]:
    return re.findall(pattern, text)


def shown(client: TestClient, address: str) -> tuple[str, list[str]]:
    """Token of the pair, addresses of its pictures from left to right."""
    text = client.get(address).text
    return found(r'data-pair="([^"]+)"', text)[0], found(r'<img src="([^"]+)"', text)


def ballot(pair: str, question: str = "overall", answer: str = "left") -> dict[str, str]:
    return {"pair": pair, "question": question, "answer": answer}


def test_a_participant_votes_to_the_end(client: TestClient, votes: Votes) -> None:
    assert "5 pairs of pictures" in client.get("/").text
    address = begin(client)
    for count in range(5):
        text = client.get(address).text
        assert f"Pair {count + 1} of 5" in text
        pair, _ = shown(client, address)
        assert client.post(f"{address}/votes", json=ballot(pair)).status_code == 201
        assert 'data-question="overall" data-answer="left"' in client.get(address).text
        assert client.post(f"{address}/votes", json=ballot(pair, "detail", "same")).status_code == 201
    assert "All 5 pairs are answered" in client.get(address).text
    assert len(votes.all()) == 10


def test_texts_are_text(client: TestClient) -> None:
    text = client.get(begin(client)).text
    assert "square &lt;" in text
    assert "Which &lt;b&gt;?" in text
    assert "<b>" not in text


def test_coming_back_by_code(client: TestClient) -> None:
    address = begin(client)
    code = address.rsplit("/", 1)[1]
    answer = client.get("/resume", params={"code": f" {code.upper()} "}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, address)
    answer = client.get("/resume", params={"code": "aaaa-bbbb-cccc"})
    assert answer.status_code == 404
    assert "Nobody here has this code" in answer.text
    assert client.get("/p/aaaa-bbbb-cccc").status_code == 404


def test_pictures_are_the_right_ones_and_are_blind(client: TestClient, page: Page, votes: Votes) -> None:
    """Red is arm a. Both arms' answers have the same headers, and words that would tell are nowhere."""
    seen = set()
    for _ in range(2):
        address = begin(client)
        number = votes.participant(address.rsplit("/", 1)[1])
        for _ in range(5):
            text = client.get(address).text
            pair, pictures = shown(client, address)
            trial = votes.trial(number, pair).trial
            answers = [client.get(picture) for picture in pictures]
            for arm, answer in zip((trial.left, trial.right), answers, strict=True):
                assert answer.headers["content-type"] == "image/png"
                assert not {"etag", "last-modified", "content-disposition"} & set(answer.headers)
                red, _, blue = Image.open(io.BytesIO(answer.content)).getpixel((16, 16))
                assert (red > blue) == arm.startswith("a")
            assert [*answers[0].headers] == [*answers[1].headers]
            everything = text + "".join(pictures) + json.dumps([dict(answer.headers) for answer in answers])
            assert not found(
                r"(?i)\bred\b|\bblue\b|damaged|\.png|\b7[0-3]\b|00000", everything.replace(trial_prompt(text), "")
            )
            assert not seen & {pair, *pictures}
            seen |= {pair, *pictures}
            for question, _ in QUESTIONS:
                client.post(f"{address}/votes", json=ballot(pair, question))


def trial_prompt(text: str) -> str:
    return found(r"</span> (.*)</h1>", text)[0]


def test_of_a_checks_two_sides_one_is_damaged(page: Page) -> None:
    plain, damaged = (Image.open(page.media.file(1, arm)).tobytes() for arm in ("a", "a-damaged"))
    assert plain == Image.open(page.media.pairs[1].files["a"]).tobytes()
    assert len(damaged) == len(plain)
    assert sum(abs(x - y) > 20 for x, y in zip(plain, damaged, strict=True)) > len(plain) / 4


def test_ranges_for_videos(client: TestClient) -> None:
    _, pictures = shown(client, begin(client))
    whole = client.get(pictures[0]).content
    part = client.get(pictures[0], headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole[10:20])


def test_a_second_vote_is_refused(client: TestClient, votes: Votes) -> None:
    address = begin(client)
    pair, _ = shown(client, address)
    answers = [
        client.post(f"{address}/votes", json=ballot(pair, answer=a)).status_code for a in ("same", "left", "same")
    ]
    assert answers == [201, 409, 409]
    assert [vote.answer for vote in votes.all()] == ["same"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 9000, 400),
        (b"null", 400),
        (b'{"pair": 1, "question": "overall", "answer": "left"}', 400),
        (b'{"pair": "PAIR", "question": "overall"}', 400),
        (b'{"pair": "PAIR", "question": "overall", "answer": "up"}', 400),
        (b'{"pair": "PAIR", "question": "overall", "answer": "left", "name": "me"}', 400),
        (b'{"pair": "\\ud800", "question": "overall", "answer": "left"}', 400),
        (b'{"pair": "nothing", "question": "overall", "answer": "left"}', 404),
        (b'{"pair": "PAIR", "question": "other", "answer": "left"}', 404),
        (b'{"pair": "PAIR", "question": "overall", "answer": "left"}' + b" " * BODY_LIMIT, 413),
    ],
)
def test_malformed_votes(client: TestClient, votes: Votes, body: bytes, status: int) -> None:
    address = begin(client)
    pair, _ = shown(client, address)
    body = body.replace(b"PAIR", pair.encode())
    assert client.post(f"{address}/votes", content=body).status_code == status
    in_parts = (body[i : i + 4000] for i in range(0, len(body), 4000))
    assert client.post(f"{address}/votes", content=in_parts).status_code == status
    assert votes.all() == []
    assert client.post("/p/aaaa-bbbb-cccc/votes", json=ballot(pair)).status_code == 404
    assert client.post(f"{begin(client)}/votes", json=ballot(pair)).status_code == 404


def test_large_requests_are_refused_wherever_they_go(client: TestClient, votes: Votes) -> None:
    assert client.post("/participants", content=b" " * (BODY_LIMIT + 1)).status_code == 413
    assert client.post("/participants", content=b" " * BODY_LIMIT, follow_redirects=False).status_code == 303
    assert votes.next_trial(0, 2) is not None
    assert votes.next_trial(1, 2) is None


@pytest.mark.parametrize(
    "path",
    [
        "/p/CODE/media/00000-70.png",
        "/p/CODE/media/..%2f..%2fred%2f00000-70.png",
        "/p/CODE/media/%2e%2e/%2e%2e/v.sqlite",
        "/p/CODE/media/0-a.png",
        "/static/../server.py",
        "/static/%2e%2e/pair.html",
        "/static/..%2f..%2fserver.py",
        "/..%2f..%2fetc%2fpasswd",
        "/p/%00/media/x",
        "/p/%ff%fe",
        "/results/x",
        "/results/%ff",
        "/results/x/votes.csv",
        "/metadata.jsonl",
    ],
)
def test_other_paths_lead_nowhere(client: TestClient, path: str) -> None:
    code = begin(client).rsplit("/", 1)[1]
    assert client.get(path.replace("CODE", code)).status_code == 404


def test_every_answer_has_the_headers(client: TestClient) -> None:
    address = begin(client)
    for path in (
        "/",
        address,
        shown(client, address)[1][0],
        "/static/study.css",
        "/static/study.js",
        "/gone",
        "/resume",
    ):
        headers = client.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "set-cookie" not in headers


def test_pages_of_others_cannot_use_it(client: TestClient, votes: Votes) -> None:
    answer = client.post("/participants", headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403
    for name in ("elsewhere.example", "else_where.example:8000", "127.0.0.1.example", "[", "", "127.0.0.1:x"):
        assert client.get("/", headers={"Host": name}).status_code == 403  # as of a name made to lead here
    assert client.get("/", headers={"Host": "localhost:8000"}).status_code == 200
    assert client.get("/", headers={"Host": "[::1]:8000"}).status_code == 200
    assert votes.next_trial(0, 2) is None


def test_with_others_on_the_network_every_address_needs_the_secret(page: Page, votes: Votes) -> None:
    token = votes.link_token
    client = TestClient(application(page, link_token=token), base_url="http://example.org")
    for path in (
        "/",
        "/participants",
        "/static/study.css",
        f"/{token[:-1]}/",
        f"/{token}x/",
        "/results/x",
        "/%ff/",
    ):
        assert client.get(path).status_code == 404
    assert client.post("/participants").status_code == 404
    assert client.get(f"/results/{votes.results_token}").status_code == 404
    text = client.get(f"/{token}/").text
    assert f'action="/{token}/participants"' in text
    address = client.post(f"/{token}/participants", follow_redirects=False).headers["location"]
    assert address.startswith(f"/{token}/p/")
    pair, pictures = shown(client, address)
    assert client.get(pictures[0]).status_code == 200
    assert client.get(pictures[0].removeprefix(f"/{token}")).status_code == 404
    assert client.post(f"{address}/votes", json=ballot(pair)).status_code == 201
    assert client.get(f"/{token}/static/study.js").status_code == 200
    assert client.get(f"/{token}/results/{votes.results_token}").status_code == 200
    assert client.get(f"/{token}/results/{token}").status_code == 404


def test_results_are_live(client: TestClient, votes: Votes) -> None:
    results = f"/results/{votes.results_token}"
    assert "—" in client.get(results).text
    address = begin(client)
    pair, _ = shown(client, address)
    trial = votes.trial(0, pair).trial
    client.post(f"{address}/votes", json=ballot(pair, answer="left" if trial.left == "a" else "right"))
    text = client.get(results).text
    assert "1 · 0 · 0" in text
    assert f'href="{results}/votes.csv"' in text
    told = client.get(f"{results}/results.json").json()
    assert (told["schema"], told["questions"][0]["wins"], told["arms"]) == (1, 1, {"a": "red", "b": "blue"})
    answer = client.get(f"{results}/votes.csv")
    assert answer.headers["content-type"].startswith("text/csv")
    assert len(answer.text.splitlines()) == 2
    assert address.rsplit("/", 1)[1] not in answer.text


def test_a_database_that_cannot_be_written_is_said(client: TestClient, votes: Votes, monkeypatch) -> None:
    address = begin(client)
    pair, _ = shown(client, address)
    votes._db.execute("PRAGMA query_only = ON")
    assert client.post(f"{address}/votes", json=ballot(pair)).status_code == 503
    votes._db.execute("PRAGMA query_only = OFF")
    assert client.post(f"{address}/votes", json=ballot(pair)).status_code == 201


@pytest.mark.parametrize(
    ("host", "only_here"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True)]
    + [(host, False) for host in ("", "0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org")],
)
def test_which_hosts_are_only_here(host: str, only_here: bool) -> None:
    assert is_loopback(host) == only_here
