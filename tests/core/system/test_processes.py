"""What processes do for one another: two of them, and one alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.tools.launching import free_port

from selfnpo_core.errors import InputError
from selfnpo_core.system import processes
from selfnpo_core.system.files import read_json

SCRIPT = Path(__file__).with_name("together.py")


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("together")
    own = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    started = [
        subprocess.Popen([sys.executable, SCRIPT, folder / "store", str(rank), folder / f"{rank}.json"], env=own)
        for rank in range(2)
    ]
    assert [process.wait(300) for process in started] == [0, 0]
    return [read_json(folder / f"{rank}.json") for rank in range(2)]


def of(both: list[dict], key: str) -> list:
    return [answers[key] for answers in both]


def test_the_first_process_works_for_all(both):
    assert of(both, "is_main") == [True, False]
    assert of(both, "on_main") == ["of 0", "of 0"]


def test_an_error_of_the_first_process_is_one_of_all(both):
    assert of(both, "on_main, input") == ["InputError: wrong", "InputError: wrong"]
    assert of(both, "on_main, other") == ["ValueError: broken", "RunError: broken"]


def test_results_are_gathered_in_the_order_of_the_processes(both):
    assert of(both, "gathered") == [["of 0", "of 1"], ["of 0", "of 1"]]


def test_nobody_waits_for_a_process_that_failed(both):
    first, second = of(both, "gathered, failure")
    assert first == "RunError: another process of this run failed: ValueError: broken"
    assert second == "ValueError: broken"


def test_shares_come_back_in_the_order_of_the_items(both):
    assert of(both, "shared_out") == [["a0", "b1", "c0", "d1", "e0"], None]


def test_each_item_goes_to_one_of_those_that_lack_it(both):
    shares = of(both, "own_share")
    assert sorted([*shares[0], *shares[1]]) == list("abcde")
    assert {"c", "d"} <= set(shares[0])
    assert "e" in shares[1]
    assert {"a", "b"} & set(shares[0])
    assert {"a", "b"} & set(shares[1])


def test_numbers_of_all_processes(both):
    assert of(both, "largest") == [7, 7]
    assert of(both, "total") == [4.0, 4.0]


def test_rows_are_joined_where_they_are_to_be_kept(both):
    assert of(both, "joined") == [[0, 10, 1, 11, 2], None]


def test_those_without_work_wait_for_longer_than_those_in_an_update(tmp_path):
    own = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    script = SCRIPT.with_name("patient.py")
    for process in [
        subprocess.Popen([sys.executable, script, tmp_path / "store", str(rank), tmp_path / f"{rank}"], env=own)
        for rank in range(2)
    ]:
        assert process.wait(300) == 0
    assert (tmp_path / "1").read_text() == "done nothing done gave up"


@pytest.mark.parametrize(
    ("way", "at_least", "why"),
    [
        ("stop", 3, "of rank 1: no sign of life for 3 s"),
        ("kill", 3, "of rank 1: no sign of life for 3 s"),
        ("stop the store's", 3, "the store is silent for 3 s"),
        ("end", 0, "of rank 1: it came to an end"),
    ],
)
def test_nobody_waits_for_a_process_that_is_gone(tmp_path, way, at_least, why):
    own = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    script, port, answer = SCRIPT.with_name("lost.py"), str(free_port()), tmp_path / "answer"
    both = [
        subprocess.Popen([sys.executable, script, str(rank), port, way, answer], env=own, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    try:
        assert both[1 if way == "stop the store's" else 0].wait(120) == 0
    finally:
        for process in both:
            process.kill()
            process.communicate()
    seconds, said = answer.read_text().split(" ", 1)
    assert said.startswith("another process of this run has ended or hangs")
    assert why in said
    assert at_least <= float(seconds) < at_least + 30


def test_alone_everything_is_ones_own():
    rows = torch.arange(3.0)
    assert processes.is_main()
    assert processes.on_main(lambda: 5) == 5
    assert processes.gathered(lambda: 5) == [5]
    assert processes.shared_out("abc", lambda own: [item.upper() for item in own]) == ["A", "B", "C"]
    assert processes.shared_out([], lambda own: 1 / 0) == []
    assert processes.own_share([["a", "b"]]) == ["a", "b"]
    assert processes.largest(3, torch.device("cpu")) == 3
    assert processes.total(rows) is rows
    assert torch.equal(processes.joined(rows, [torch.arange(3)], torch.device("cpu"), keep=True), rows)
    assert processes.joined(rows, [torch.arange(3)], torch.device("cpu"), keep=False) is None
    with pytest.raises(InputError, match="wrong"):
        processes.on_main(lambda: (_ for _ in ()).throw(InputError("wrong")))
