"""Formulas as MathML, made when the site is built, so that a browser needs no script and no network to show them.

`latex` is for the pages, which write formulas in LaTeX; `plain` is for docstrings, which write them as one types them:

    x_s = r·x_t + sqrt(sigma_s² − r²·sigma_t²)·eps
"""

import re
from collections.abc import Iterator
from html import escape, unescape

from latex2mathml.converter import convert

_GREEK = {"alpha": "α", "beta": "β", "delta": "δ", "eps": "ε", "lambda": "λ", "mu": "μ", "sigma": "σ"}
_WORDS = frozenset({"guide", "negative", "positive", "scale", "weight", "log", "sqrt", "LoRA"})
_POWERS = {"²": "2", "³": "3", "ᵀ": "⊤"}
_OPERATORS = "=+−·/(){}[]|,:;→←≤<>≈~∈‖⟨⟩∞√Σ′…"
_TOKEN = re.compile(
    r"\s*(?:(?P<name>[A-ZΑ-Ωa-zα-ω]\u0302?[A-Za-z]*\d*(?:_[A-Za-zα-ω0-9]+(?:,ref)?)?)|(?P<number>\d+(?:\.\d+)?|½)"
    rf"|(?P<power>[{''.join(_POWERS)}])|(?P<operator>[{re.escape(_OPERATORS)}]))"
)
_NAME = re.compile(r"(?P<base>[A-ZΑ-Ωa-zα-ω]\u0302?[A-Za-z]*?)(?P<digits>\d*)(?:_(?P<low>.+))?")
_LIKE_ONE = re.compile(r"[=·−+²√←≈~]|[ρσ]\(|^E\[|^(eps|x0)$")


class NotAFormula(ValueError):
    """The text has something that formulas here do not have."""


def latex(source: str, *, display: bool) -> str:
    """LaTeX → MathML."""
    formula: str = convert(source, display="block" if display else "inline")
    return formula


def plain(text: str) -> str:
    """A formula as typed → MathML. Raises `NotAFormula`."""
    return f'<math display="inline"><mrow>{"".join(_Reader(text).row(until=None))}</mrow></math>'


def block(lines: str) -> str | None:
    """An indented block of a docstring as an HTML table, formulas in MathML; None if there is no formula in it.

    Two spaces or more stand between its columns; a line that is indented goes on in the last column.
    """
    rows: list[list[str]] = []
    for line in lines.splitlines():
        indent = len(line) - len(line.lstrip())
        cells = re.split(r"\s{2,}", line.strip()) if line.strip() else []
        rows.append([""] * min(indent, len(rows[-1]) - 1 if rows else 0) + cells if indent else cells)
    made = [[_cell(text) for text in row] for row in rows if row]
    if not any(is_formula for row in made for _, is_formula in row):
        return None
    body = "".join(f"<tr>{''.join(f'<td>{html}</td>' for html, _ in row)}</tr>" for row in made)
    return f'<table class="formulas"><tbody>{body}</tbody></table>'


def _cell(text: str) -> tuple[str, bool]:
    """HTML, and whether it is a formula. A remark behind a comma may follow it."""
    if not _LIKE_ONE.search(text):
        return escape(text), False
    for end in (len(text), *reversed([found.start() for found in re.finditer(",", text)])):
        try:
            return plain(text[:end]) + escape(text[end:]), True
        except NotAFormula:
            continue
    return escape(text), False


class _Reader:
    """Tokens of a formula, turned into MathML one after another."""

    def __init__(self, text: str) -> None:
        self._tokens, at, text = [], 0, text.strip()
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise NotAFormula(text)
            self._tokens.append((str(found.lastgroup), found[str(found.lastgroup)]))
            at = found.end()
        self._place = 0

    def row(self, until: str | None) -> Iterator[str]:
        """Up to the operator `until`, which is taken too."""
        while self._place < len(self._tokens):
            kind, text = self._next()
            if (kind, text) == ("operator", until):
                return
            yield self._raised(self._one(kind, text))
        if until is not None:
            raise NotAFormula(f"no {until}")

    def _next(self) -> tuple[str, str]:
        self._place += 1
        return self._tokens[self._place - 1]

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._place] if self._place < len(self._tokens) else ("", "")

    def _raised(self, base: str) -> str:
        while self._peek()[0] == "power" or self._peek() == ("operator", "′"):
            _, text = self._next()
            base = f"<msup>{base}<mo>{_POWERS.get(text, text)}</mo></msup>"
        return base

    def _one(self, kind: str, text: str) -> str:
        if kind == "number":
            return f"<mn>{text}</mn>"
        if kind == "power":
            raise NotAFormula(text)
        if text == "√":
            return f"<msqrt>{self._one(*self._next())}</msqrt>"
        if kind == "operator":
            return f'<mo stretchy="false">{escape(text)}</mo>'
        if text == "sqrt" and self._peek() == ("operator", "("):
            self._next()
            return f"<msqrt>{''.join(self.row(until=')'))}</msqrt>"
        return _name(text)


def _name(text: str) -> str:
    found = _NAME.fullmatch(text)
    if found is None:
        raise NotAFormula(text)
    base, low = found["base"], found["low"] or found["digits"]
    if found["low"] and found["digits"]:
        raise NotAFormula(text)
    hat = base.endswith("\u0302")
    base = base.removesuffix("\u0302")
    if len(base) > 2 and base not in _GREEK and base not in _WORDS:
        raise NotAFormula(base)
    letter = f"<mi>{_GREEK.get(base, base)}</mi>"
    if hat:
        letter = f'<mover accent="true">{letter}<mo stretchy="false">^</mo></mover>'
    return f"<msub>{letter}<mi>{escape(_GREEK.get(low, low))}</mi></msub>" if low else letter


_INLINE = re.compile(r'<(span|div) class="arithmatex">\s*\\([(\[])(.*?)\\[)\]]\s*</\1>', re.DOTALL)
_PARAGRAPH = re.compile(r"<p>[^<]*(?:<(?!/p>)[^<]*)*</p>")
_NAMED = re.compile(r"(<p>|\n)([a-z]\w*(?:, [a-z]\w*)*):(?= )")
_CODE = re.compile(r'<div class="highlight"><pre><span></span><code>(.*?)</code></pre></div>', re.DOTALL)


def on_a_page(html: str) -> str:
    """A page's LaTeX (as pymdownx.arithmatex leaves it) as MathML."""
    return _INLINE.sub(lambda found: latex(unescape(found[3]).strip(), display=found[2] == "["), html)


def in_docstrings(html: str) -> str:
    """The indented blocks of docstrings that are formulas as MathML; a line `name: …` begins a line there too."""

    def change(found: re.Match[str]) -> str:
        text = unescape(re.sub(r"<[^>]*>", "", found[1]))
        return block(text) or found[0]

    return _PARAGRAPH.sub(lambda found: _NAMED.sub(r"\1<br><code>\2</code>:", found[0]), _CODE.sub(change, html))
