"""Recipes as people write them, in YAML and as key=value, and what is wrong with one, in their words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from selfnpo_core.errors import InputError
from selfnpo_core.system.paths import user_path
from selfnpo_core.system.text import is_text, read_text


def read_yaml(path: Path) -> dict[str, Any]:
    """A recipe file's keys, which are not looked at. Raises `InputError`, one line."""
    try:
        values = _parsed(read_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the recipe {path}: {_one_line(error)}") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid YAML: {_one_line(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold `key: value` lines, not {type(values).__name__}")
    return values


def _parsed(text: str) -> Any:
    """YAML. Raises ValueError for what is none, also where only Python cannot hold it."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(_one_line(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_overrides(items: Sequence[str]) -> dict[str, Any]:
    """ "key=value", the value being YAML."""
    values = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {item}: write it as key=value")
        try:
            values[key.strip()] = _parsed(text)
        except ValueError as error:
            raise InputError(f"--set {item}: the value is not valid YAML: {_one_line(error)}") from None
    return values


def settled(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """With `~` as the home folder in the keys that are paths. Raises `InputError` for text that no file could hold."""
    for key, value in values.items():
        for text in value if isinstance(value, list | tuple) else (value,):
            if isinstance(text, str) and not is_text(text):
                raise InputError(f"{source}: {key} holds half a character: write it as UTF-8")
    paths = {key: user_path(values[key]) for key in _PATHS if isinstance(values.get(key), str)}
    return {**values, **{key: str(path) for key, path in paths.items() if values[key].startswith("~")}}


_PATHS = ("model", "prompts", "output")
_LIMITS = {
    "greater_than_equal": ("ge", "at least {}"),
    "greater_than": ("gt", "more than {}"),
    "less_than_equal": ("le", "at most {}"),
    "less_than": ("lt", "less than {}"),
    "literal_error": ("expected", "{}"),
}


def explain(error: Any) -> str:
    """One pydantic error as `key is value, but must be …`."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    key = str(error["loc"][0]) if error["loc"] else "recipe"
    if kind in _LIMITS:
        name, phrase = _LIMITS[kind]
        return f"{key} is {error['input']}, but must be {phrase.format(context[name])}"
    message = error["msg"].removeprefix("Input should be ").split(",")[0]
    return f"{key} is {error['input']!r}, but must be {message}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
