"""Terminals, locales and command lines as they are elsewhere: nothing that is said or given ends a command."""

import os
import subprocess
import sys

import click
import pytest

from selfnpo_core.commands.options import PATH
from selfnpo_core.commands.running import run

SAYS = """
import sys, logging, click
from tqdm import tqdm
from selfnpo_core.commands.printing import echo_json, echo_table
from selfnpo_core.commands.running import run
from selfnpo_core.errors import InputError

@click.command()
def says():
    click.echo("↓ ε ∞ Bär b\\udcffr")
    echo_table(["metric ↓"], [["ε = ∞"]])
    echo_json({"x": "↓ \\udcff"})
    print("↓ ε ∞", flush=True)
    for _ in tqdm([1], desc="↓ ε"):
        logging.getLogger("selfnpo_core.x").warning("ε → ∞")
    raise InputError("‖Δε‖ is ∞: leave \\udcff out")

sys.exit(run(says, name="tool"))
"""
HOMES = {
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "ascii, strict": {"PYTHONIOENCODING": "ascii:strict"},
    "C": {"LANG": "C"},
    "C without UTF-8 mode": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.mark.parametrize("home", HOMES)
def test_what_a_terminal_cannot_show_ends_nothing(home, tmp_path):
    (tmp_path / "says.py").write_text(SAYS, encoding="utf-8")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHONIO"))}
    done = subprocess.run(
        [sys.executable, tmp_path / "says.py"],
        capture_output=True,
        env={**kept, **HOMES[home]},
        check=False,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Logging error" not in done.stderr
    assert b"tool: error:" in done.stderr.splitlines()[-1]


def test_a_main_command_in_a_poor_place():
    """The table of models has characters that ASCII lacks."""
    poor = {**os.environ, "PYTHONIOENCODING": "ascii:strict", "LANG": "C", "LC_ALL": "C", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "selfnpo_image.cli", "models"], capture_output=True, env=poor, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert b"stable-diffusion-xl-base-1.0" in done.stdout


def test_words_that_are_no_utf8_are_refused(capsys):
    command = click.command()(click.option("--prompt")(lambda prompt: None))
    assert run(command, ["--prompt", "b\udcffr"], name="tool") == 2
    assert "'b?r' is not UTF-8" in capsys.readouterr().err


def test_home_is_found_where_the_shell_leaves_it(monkeypatch, capsys):
    monkeypatch.setenv("HOME", "/home/one")
    command = click.command()(click.option("--model", type=PATH)(lambda model: click.echo(model)))
    for word in ("--model=~/x", "--model=./x", "--model=owner/name"):
        assert run(command, [word], name="tool") == 0
    assert capsys.readouterr().out.split() == ["/home/one/x", "./x", "owner/name"]
    for word, words in (("~nobody-here", "no user nobody-here"), ("x" * 5000, "too long")):
        assert run(command, ["--model", word], name="tool") == 2
        told = capsys.readouterr().err
        assert words in told
        assert len(told) < 2200


def test_other_systems_path_errors_are_one_line(capsys):
    @click.command()
    def fails():
        open("x" * 300)  # noqa: SIM115

    assert run(fails, [], name="tool") == 2
    assert "File name too long" in capsys.readouterr().err
