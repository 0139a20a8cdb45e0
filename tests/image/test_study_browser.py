"""The study's page in a real browser: two people vote, one comes back by code, the server is killed in between."""

import http.client
import signal
import socket
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait
from tests.core.study.drawn import draw_folders
from tests.image.browser import chromium
from tests.image.serving import serving

PAIRS, CHECKS, QUESTIONS = 20, 2, 3
TRIALS = PAIRS + CHECKS
KEYS = {
    "left": (Keys.ARROW_LEFT, "1"),
    "same": (Keys.ARROW_DOWN, "2"),
    "right": (Keys.ARROW_RIGHT, "3"),
}


class Person:
    """Somebody at the page with a keyboard. They see the damaged sample of a check, else they answer by a rule."""

    def __init__(self, browser: Chrome, database: Path, answers: tuple[str, str, str]):
        """answers: to the three questions, whatever is shown."""
        self.browser, self.database, self.answers = browser, database, answers
        self.address = ""
        self.given: list[tuple[int, str, str]] = []
        """Position, question and answer of every vote that the page took."""

    def begin(self, link: str) -> None:
        self.browser.get(link)
        self.press(Keys.TAB, Keys.ENTER)
        self.wait(lambda: "/p/" in self.browser.current_url)
        self.address = self.browser.current_url

    @property
    def code(self) -> str:
        return self.browser.find_element(By.CSS_SELECTOR, "header strong").text

    def press(self, *keys: str) -> None:
        for key in keys:
            self.browser.switch_to.active_element.send_keys(key)

    def wait(self, condition) -> None:
        def quiet(_) -> bool:
            try:
                return condition()
            except StaleElementReferenceException:
                return False

        WebDriverWait(self.browser, 10, poll_frequency=0.01).until(quiet)

    def state(self) -> tuple[str, int]:
        """The pair's token and how many of its questions are answered; nothing while a page loads."""
        script = (
            "const main = document.querySelector('main[data-pair]');"
            "return main && main.getAttribute('aria-busy') === 'false' && document.readyState === 'complete'"
            "? [main.dataset.pair, document.querySelectorAll('fieldset[data-answer]').length] : ['', -1]"
        )
        return tuple(self.browser.execute_script(script))

    def finished(self) -> bool:
        return "Thank you" in self.browser.title

    def vote(self, count: int) -> None:
        """Answer so many questions, each with the other key of its two than the one before."""
        for _ in range(count):
            self.wait(lambda: self.state()[1] >= 0)
            token, answered = self.state()
            position, question, answer = self.answer(token, answered)
            self.press(KEYS[answer][len(self.given) % 2])
            self.wait(lambda before=(token, answered): self.finished() or self.state() not in (before, ("", -1)))
            self.given.append((position, question, answer))

    def answer(self, token: str, answered: int) -> tuple[int, str, str]:
        """Which trial this is, for the test's own eyes, and what this person answers."""
        query = "SELECT position, left_arm, right_arm FROM trials WHERE token = ?"
        ((position, left, right),) = rows(self.database, query, token)
        question = ("preference", "alignment", "detail")[answered]
        if "damaged" in left + right:
            return position, question, "right" if "damaged" in left else "left"
        return position, question, self.answers[answered]


def rows(database: Path, query: str, *values: object) -> list[tuple]:
    with closing(sqlite3.connect(database)) as votes:
        return votes.execute(query, values).fetchall()


def ask(link: str, method: str, path: str, body: bytes = b"", **headers: str) -> int:
    """The status of a raw request: nothing between here and the server makes the path a nicer one."""
    connection = http.client.HTTPConnection(urlsplit(link).netloc, timeout=5)
    connection.request(method, path, body or None, headers)
    return connection.getresponse().status


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.slow
def test_two_people_vote_and_nothing_is_lost(tmp_path: Path) -> None:
    draw_folders(tmp_path, PAIRS)
    database, port = tmp_path / "study-red-blue.sqlite", free_port()
    with chromium(tmp_path / "one") as first, chromium(tmp_path / "two") as second:
        anna = Person(first, database, ("left", "left", "same"))
        ben = Person(second, database, ("right", "same", "left"))
        with serving(tmp_path, port=port) as server:
            anna.begin(server.link)
            ben.begin(server.link)
            anna.vote(11 * QUESTIONS + 1)
            ben.vote(4 * QUESTIONS + 2)
            refuses_what_is_wrong(server.link, urlsplit(anna.address).path, anna.state()[0])
            code = anna.code
            first.get("about:blank")
            server.process.kill()
            server.process.wait()
            answer_while_away(ben)
        with serving(tmp_path, port=port) as server:
            first.get(server.link)
            field = first.find_element(By.ID, "code")
            field.send_keys(code, Keys.ENTER)
            anna.wait(lambda: anna.state()[1] >= 0)
            assert (first.current_url, anna.state()[1]) == (anna.address, 1)
            anna.vote(TRIALS * QUESTIONS - len(anna.given))
            ben.vote(TRIALS * QUESTIONS - len(ben.given))
            assert anna.finished()
            assert ben.finished()
            first.get(server.results)
            assert (
                "who count: 2, of whom 2 have finished 20 pairs. Left out: 0"
                in first.find_element(By.TAG_NAME, "main").text
            )
            assert_console_is_clean(first)
            code, _, said = server.end(signal.SIGINT)
            assert (code, "Traceback" in said) == (0, False), said
    kept = rows(database, "SELECT participant, position, question, answer FROM votes ORDER BY rowid")
    for number, person in enumerate((anna, ben)):
        assert [row[1:] for row in kept if row[0] == number] == person.given
        assert len(person.given) == TRIALS * QUESTIONS
    for number in range(2):
        sides = rows(database, "SELECT left_arm || right_arm FROM trials WHERE participant = ?", number)
        counts = Counter(side for (side,) in sides)
        assert counts["ab"] == counts["ba"] == PAIRS // 2
        assert sum(counts.values()) == TRIALS


def answer_while_away(person: Person) -> None:
    """The server is dead: the page says so, and the answer is still to be given."""
    person.press(Keys.ARROW_LEFT)
    message = person.browser.find_element(By.CSS_SELECTOR, ".message")
    person.wait(lambda: "could not be saved" in message.text)
    assert person.state()[1] == 2


def assert_console_is_clean(browser: Chrome) -> None:
    said = [entry for entry in browser.get_log("browser") if "ERR_CONNECTION_REFUSED" not in entry["message"]]
    assert said == []


def refuses_what_is_wrong(link: str, page: str, pair: str) -> None:
    def vote(body: bytes) -> int:
        return ask(link, "POST", f"{page}/votes", body, **{"Content-Type": "application/json"})

    for path in (
        "/../../etc/passwd",
        f"{page}/media/../../../red/00000-70.png",
        "/static/..%2f..%2fserver.py",
        "//etc/passwd",
    ):
        assert ask(link, "GET", path) == 404
    good = b'{"pair": "%s", "question": "detail", "answer": "left"}' % pair.encode()
    assert vote(good[:-1]) == 400
    assert vote(b'{"pair": "x", "question": "detail", "answer": "left"}') == 404
    assert vote(good + b" " * 17_000) == 413
    assert vote(good.replace(b"detail", b"preference")) == 409


def test_a_picture_is_enlarged_and_the_other_side_is_an_arrow_away(tmp_path: Path) -> None:
    draw_folders(tmp_path, 2)
    with serving(tmp_path) as server, chromium(tmp_path / "profile", "--window-size=500,900") as browser:
        person = Person(browser, tmp_path / "study-red-blue.sqlite", ("left", "left", "left"))
        person.begin(server.link)
        person.wait(lambda: person.state()[1] >= 0)
        left, right = (image.get_attribute("src") for image in browser.find_elements(By.CSS_SELECTOR, "figure img"))
        browser.find_element(By.CSS_SELECTOR, "[data-side=left]").click()
        dialog = browser.find_element(By.TAG_NAME, "dialog")
        for title, source in (("Left", left), ("Right", right), ("Left", left)):
            assert dialog.find_element(By.TAG_NAME, "p").text == title
            assert dialog.find_element(By.TAG_NAME, "img").get_attribute("src") == source
            person.press(Keys.ARROW_RIGHT)
        dialog.click()
        assert not dialog.is_displayed()
        assert person.state()[1] == 0  # no arrow was a vote
        buttons = browser.find_elements(By.CSS_SELECTOR, "fieldset button")
        assert all(button.rect["height"] >= 40 for button in buttons)
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        buttons[1].click()
        person.wait(lambda: person.state()[1] == 1)
        assert buttons[1].get_attribute("aria-pressed") == "true"
