"""Prompts in tables and in every encoding: what each file gives, or the words it is refused with."""

import json
import logging

import pytest

from selfnpo_core.errors import InputError
from selfnpo_core.models.prompts import kept_prompts, read_prompts

TWO = ["a red circle", "a blue square"]
ROWS = [{"prompt": "a red circle", "image": "1.png"}, {"prompt": "a blue square", "image": "2.png"}]


def lines(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


READ = {
    "jsonl": ("p.jsonl", lines(ROWS)),
    "jsonl, upper-case ending": ("p.JSONL", lines(ROWS)),
    "jsonl of strings": ("p.jsonl", lines(TWO)),
    "jsonl, CRLF and blank ends": ("p.ndjson", "\r\n" + lines(ROWS).replace("\n", "\r\n") + "\r\n"),
    "jsonl, byte-order mark": ("p.jsonl", "\ufeff" + lines(ROWS)),
    "json, strings": ("p.json", json.dumps(TWO)),
    "json, objects": ("p.json", json.dumps([{"caption": text} for text in TWO], indent=1)),
    "json, one list within": ("p.json", json.dumps({"version": 1, "prompts": TWO})),
    "json, columns": ("p.json", json.dumps({"id": [1, 2], "text": TWO})),
    "json, by id": ("p.json", json.dumps({str(i): {"prompt": text} for i, text in enumerate(TWO)})),
    "json, captions beside pictures": (
        "p.json",
        json.dumps({"images": [{"id": 1}], "annotations": [{"caption": text} for text in TWO]}),
    ),
    "json that is json lines": ("p.json", lines(ROWS)),
    "vbench": ("p.json", json.dumps([{"prompt_en": text, "dimension": ["x"]} for text in TWO])),
    "csv": ("p.csv", "prompt,seed\na red circle,1\na blue square,2\n"),
    "csv, other names": ("p.csv", "Prompts,Category\na red circle,x\na blue square,y\n"),
    "csv, quotes": ("p.csv", 'id,text\n1,"a red circle"\n2,"a blue\r\nsquare"\n'),
    "csv, semicolons": ("p.csv", "prompt;seed\na red circle;1,5\na blue square;2\n"),
    "csv, byte-order mark": ("p.csv", "\ufeffprompt\na red circle\na blue square\n\n"),
    "tsv": ("p.tsv", "Prompt\tCategory\na red circle\tx\na blue square\ty\n"),
    "the enhanced one": ("p.jsonl", lines([{"original_prompt": "x", "enhanced_prompt": text} for text in TWO])),
    "prompt comes first": ("p.jsonl", lines([{"enhanced_prompt": "x", "prompt": text} for text in TWO])),
    "text of objects in part": ("p.txt", "a red circle\na blue square"),
}


@pytest.mark.parametrize("case", READ)
def test_usual_tables_are_read(tmp_path, case):
    name, content = READ[case]
    (tmp_path / name).write_bytes(content.encode())
    assert read_prompts(tmp_path / name) == TWO


ONE = {
    "with a list": {"prompt": "a red circle", "tags": ["ugly", "bad"]},
    "with a list of objects": {"caption": "a red circle", "boxes": [{"x": 1}, {"x": 2}]},
    "beside a list of more": {"caption": "a red circle", "size": [64, 64], "id": 3},
    "alone in a list": {"prompts": [{"prompt": "a red circle"}]},
}


@pytest.mark.parametrize("case", ONE)
def test_one_prompt_in_an_object(tmp_path, case):
    (tmp_path / "p.json").write_text(json.dumps(ONE[case]))
    assert read_prompts(tmp_path / "p.json") == ["a red circle"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".csv"])
def test_encodings_with_a_mark(tmp_path, encoding, ending):
    content = {".txt": "ein Bär\nzwei\n", ".jsonl": '"ein Bär"\n"zwei"\n', ".csv": "prompt\nein Bär\nzwei\n"}[ending]
    mark = "\ufeff" if encoding.endswith("e") else ""
    file = tmp_path / f"p{ending}"
    file.write_bytes((mark + content).encode(encoding))
    assert read_prompts(file) == ["ein Bär", "zwei"]


REFUSED = {
    "json lines called text": ("p.txt", lines(ROWS), "give it the ending .jsonl"),
    "a table called text": ("p.txt", "prompt,seed\na red circle,1\n", "give it the ending .csv"),
    "tabs called text": ("p.txt", "id\tcaption\n1\tx y\n", "give it the ending .tsv"),
    "json called text": ("p.txt", json.dumps(ROWS, indent=1), "give it the ending .json"),
    "no column of these": (
        "p.csv",
        "words,seed\nx,1\n",
        "no column prompt, caption, text: its columns are words, seed",
    ),
    "no names": ("p.csv", "a red circle\na blue square\n", "its columns are a red circle"),
    "an unquoted comma": ("p.csv", "prompt\na red circle, oil\n", "line 2 .* 2 cells under 1 names"),
    "an open quote": ("p.csv", 'prompt\n"a red circle\nb\n', "is no row of cells"),
    "a column twice": ("p.csv", "prompt,prompt\na,b\n", "'prompt' twice"),
    "an empty cell": ("p.csv", "prompt,seed\na,1\n,2\n", "line 3 in 'prompt' .* is empty"),
    "a blank row": ("p.csv", "prompt\na\n\nb\n", "is empty"),
    "names only": ("p.csv", "prompt,seed\n", "no rows"),
    "nothing": ("p.jsonl", "\n", "no prompts in it"),
    "an empty table": ("p.csv", "", "no prompts in it"),
    "an empty list": ("p.json", "[]", "no prompts in it"),
    "a cut line": ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b', "line 2 .* is not JSON"),
    "a blank line": ("p.jsonl", '{"prompt": "a"}\n\n{"prompt": "b"}', "line 2 .* is empty"),
    "a number": ("p.jsonl", '{"prompt": 3}', "line 1 in 'prompt' .* is int, not text"),
    "several captions": ("p.jsonl", '{"caption": ["a", "b"]}', "is list, not text"),
    "null": ("p.jsonl", '{"prompt": null}', "is empty"),
    "half a character": ("p.jsonl", '{"prompt": "\\ud800"}', "half a character"),
    "a zero byte": ("p.jsonl", '{"prompt": "a\\u0000"}', "zero byte"),
    "mixed rows": ("p.jsonl", '"a"\n{"prompt": "b"}', "mixes strings and objects"),
    "a list in a line": ("p.jsonl", "[1]", "line 1 .* is list"),
    "nested": ("p.json", "[" * 100_000, "not JSON"),
    "a prompt that is none, beside a list": ("p.json", '{"prompt": 3, "tags": ["x"]}', "found: prompt, tags"),
    "one prompt and a list of them": ("p.json", '{"text": "x", "rows": [{"text": "y"}]}', "found: text, rows"),
    "one prompt and a column": ("p.json", '{"prompt": "x", "captions": ["y", "z"]}', "found: prompt, captions"),
    "a key twice": ("p.json", '{"a": {"prompt": "x"}, "a": {"prompt": "y"}}', "has the key 'a' twice"),
    "a key twice in a row": ("p.json", '[{"prompt": "x", "prompt": "y"}]', "has the key 'prompt' twice"),
    "a key twice in a line": ("p.jsonl", '"x"\n{"prompt": "x", "prompt": "y"}', "line 2 .* the key 'prompt' twice"),
    "a model's configuration": ("p.json", '{"_class_name": "X", "n": 1}', "found: _class_name, n"),
    "parquet": ("p.parquet", "PAR1", "a Parquet table, which is not read"),
    "parquet by its beginning": ("p.txt", "PAR1\0", "a Parquet table"),
    "a spreadsheet": ("p.xlsx", "PK", "a spreadsheet"),
    "yaml": ("p.yaml", "- a", "YAML"),
    "a column of text": ("p.txt:prompt", "a\n", "has no columns"),
    "no such column": ("p.csv:words", "prompt\na\n", "no column 'words': its columns are prompt"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused(tmp_path, case):
    name, content, words = REFUSED[case]
    (tmp_path / name.split(":")[0]).write_bytes(content.encode())
    with pytest.raises(InputError, match=words) as error:
        read_prompts(tmp_path / name)
    assert "\n" not in str(error.value)
    assert name.split(":")[0] in str(error.value)


def test_what_is_not_used_is_named(tmp_path, caplog):
    file = tmp_path / "p.csv"
    file.write_text("prompt,image,enhanced_prompt\na,1.png,A\n")
    with caplog.at_level(logging.INFO, "selfnpo_core"):
        assert read_prompts(file) == ["a"]
    assert "column 'prompt' of" in caplog.text
    assert "not used: image, enhanced_prompt" in caplog.text
    assert read_prompts(f"{file}:enhanced_prompt") == ["A"]


def test_a_runs_own_prompts_are_lines_whatever_they_look_like(tmp_path):
    (tmp_path / "prompts.txt").write_text('{"prompt": "a"}\n')
    assert kept_prompts(tmp_path / "prompts.txt") == ['{"prompt": "a"}']
