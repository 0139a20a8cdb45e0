"""What commands print: JSON with its schema's number, and tables."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click


def echo_json(value: Mapping[str, Any]) -> None:
    """What `--json` prints: one object with its schema's number."""
    click.echo(json.dumps({"schema": 1, **value}, indent=1, ensure_ascii=False))


def echo_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
    for row in (head, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
