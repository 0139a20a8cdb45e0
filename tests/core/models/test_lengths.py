"""Which prompts are cut, by which reader."""

from types import SimpleNamespace

from selfnpo_core.models.lengths import cut_of, say_what_is_cut


def by_words(texts: list[str]) -> SimpleNamespace:
    """Two tokens more than there are words."""
    return SimpleNamespace(input_ids=[["<", *text.split(), ">"] for text in texts])


TEXTS = ["one", "one two three", "one two three four five"]


def test_each_limit_is_told_with_its_readers(caplog):
    say_what_is_cut(TEXTS, {"a": (by_words, 5), "b": (by_words, 5), "c": (by_words, 7)})
    assert caplog.messages == ["1 of 3 prompts are longer than 5 tokens (a, b): the rest of them is cut"]
    caplog.clear()
    say_what_is_cut(TEXTS, {"a": (by_words, 4)})
    assert caplog.messages == ["2 of 3 prompts are longer than 4 tokens: the rest of them is cut"]


def test_what_is_read_whole_is_not_told(caplog):
    say_what_is_cut(TEXTS, {"a": (by_words, 7)})
    say_what_is_cut([], {"a": (by_words, 1)})
    assert cut_of(by_words, 7, TEXTS) == cut_of(by_words, 1, []) == 0
    assert not caplog.messages


def test_one_process_of_many_tells(caplog, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    say_what_is_cut(TEXTS, {"a": (by_words, 4)})
    assert not caplog.messages
