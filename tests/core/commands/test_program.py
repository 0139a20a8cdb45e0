"""Exit codes and messages; help without heavy imports; prompts files."""

import errno
import logging
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from tqdm import tqdm

from selfnpo_core.commands.options import set_key
from selfnpo_core.commands.program import program
from selfnpo_core.commands.running import _AboveBars, describe_error, run
from selfnpo_core.commands.train import folder_name
from selfnpo_core.errors import InputError, RunError
from selfnpo_core.models.prompts import read_prompts
from selfnpo_core.system.signals import Interrupted
from selfnpo_core.training.resolving import resolve_recipe
from selfnpo_image.family import IMAGE
from selfnpo_video.family import VIDEO


class OutOfMemoryError(RuntimeError):
    pass


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("wrong:\n  do this"), 2, "tool: error: wrong: do this"),
        (RunError("it failed"), 1, "tool: error: it failed"),
        (Interrupted("saved", 143), 143, "tool: error: saved"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 2, "/root/x: Permission denied"),
        (OutOfMemoryError("CUDA out of memory"), 1, "lower the batch size"),
        (click.BadParameter("not a number"), 2, "not a number"),
    ],
)
def test_errors_end_with_a_code_and_a_line(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def fails() -> None:
        raise error

    assert run(fails, [], name="tool") == code
    stderr = capsys.readouterr().err.strip()  # click breaks the line that ^C stands in
    assert message in stderr
    assert "\n" not in stderr


def test_a_disk_that_is_full_behind_another_error() -> None:
    error = RuntimeError("could not write")
    error.__cause__ = OSError(errno.ENOSPC, "full")
    assert describe_error(error, "tool")[0] == 1


def test_our_own_mistakes_are_not_hidden() -> None:
    @click.command()
    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(broken, [], name="tool")


def test_a_commands_number_is_the_exit_code() -> None:
    assert run(click.command("c")(lambda: 1), [], name="tool") == 1
    assert run(click.command("c")(lambda: None), [], name="tool") == 0


def test_a_program_lists_its_commands_and_refuses_others(capsys: pytest.CaptureFixture[str]) -> None:
    group = program(IMAGE)
    assert run(group, ["--help"], name="tool") == 0
    told = capsys.readouterr().out
    assert "What negative weights are, and how strong." in told
    assert all(f"  {name} " in told for name in group.commands)
    assert run(group, ["other"], name="tool") == 2
    assert "No such command 'other'" in capsys.readouterr().err


def test_every_program_has_the_same_commands() -> None:
    assert list(program(IMAGE).commands) == list(program(VIDEO).commands)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, selfnpo_image.cli, selfnpo_video.cli\n"
        "print(*[m for m in ('torch', 'diffusers', 'numpy', 'PIL', 'pydantic') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


@pytest.mark.parametrize("value", ["a: b", "2024", "no", "x#y", "C:\\models\\m", "ü"])
def test_options_survive_as_overrides(value: str) -> None:
    assert resolve_recipe({}, None, [set_key("model", value)]).model == value


def test_a_message_has_a_line_of_its_own_beside_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with tqdm(total=2, desc="draw", file=sys.stderr) as bar:
        bar.update()
        bar.refresh()
        _AboveBars().handle(logging.LogRecord("x", logging.INFO, "", 1, "round %d", (2,), None))
    assert "round 2" in re.split(r"[\r\n]+", capsys.readouterr().err)


def test_folder_names() -> None:
    assert folder_name("sd15") == "sd15"
    assert folder_name("someone/a model.safetensors") == "a-model"
    assert folder_name("/models/x/") == "x"
    assert folder_name("...") == "model"


def test_prompts_are_the_files_lines(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_bytes("\ufeff\na fox\r\n  # ein Würfel \n\u2028b\n\n".encode())
    assert read_prompts(file) == ["a fox", "# ein Würfel", "b"]


def test_a_prompts_file_that_cannot_be_used(tmp_path: Path) -> None:
    for content, message in ((b"", "no prompts"), (b" \n\n", "no prompts"), (b"a\nb\0", "zero byte in line 2")):
        (tmp_path / "p.txt").write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_prompts(tmp_path / "p.txt")
    (tmp_path / "p.txt").write_text("\n\na fox\n\na bird\n")
    with pytest.raises(InputError, match=r"line 4 of the prompts file .* is empty"):
        read_prompts(tmp_path / "p.txt")
    (tmp_path / "p.txt").write_bytes("gut\nschön\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"not UTF-8 \(line 2\)"):
        read_prompts(tmp_path / "p.txt")
    with pytest.raises(InputError, match="does not exist"):
        read_prompts(tmp_path / "gone.txt")
    with pytest.raises(InputError, match="is a folder"):
        read_prompts(tmp_path)
