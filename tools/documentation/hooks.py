"""What mkdocs is told by code when the site is built: pages made of the packages, formulas, the drawing.

Made anew each time: the reference, a page a package; the drawing of the import graph; pages of the notebooks, of
CONTRIBUTING.md and of CHANGELOG.md. None of them is kept in the repository. No network is needed.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import formulas
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import draw_architecture  # noqa: E402

DISTRIBUTIONS = {"selfnpo_core": "core", "selfnpo_image": "image", "selfnpo_video": "video"}
PAPER = "the mathematics"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The reference's and other generated pages' places in the navigation."""
    assert config.nav is not None
    config.nav.append({"Notebooks": [f"notebooks/{path.stem}.md" for path in _notebooks()]})
    config.nav.append({"API reference": [{package: list(_pages(package))} for package in DISTRIBUTIONS]})
    config.nav += [f"{path.stem.lower()}.md" for path in _at_the_root()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for package in DISTRIBUTIONS:
        for page, modules in _pages_of(package).items():
            files.append(File.generated(config, page, content=_reference(package, page, modules)))
    for path in _notebooks():
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=_notebook(path)))
    for path in _at_the_root():
        content = path.read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, f"{path.stem.lower()}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """`<!-- drawing -->` stands for the drawings, `<!-- rooms -->` for the tables of them."""
    if "<!-- drawing -->" not in markdown:
        return markdown
    graph = draw_architecture.build_graph()
    drawn = draw_architecture.houses(graph, draw_architecture.read_contracts())
    if wrong := [line for house in drawn for line in draw_architecture.upward(graph, house)]:
        raise PluginError("arrows run upwards:\n" + "\n".join(wrong))
    core, *families = [draw_architecture.grounded(graph, house) for house in drawn]
    markdown = markdown.replace("<!-- drawing -->", _figure(core))
    markdown = markdown.replace("<!-- families -->", "\n\n".join(f"### `{h.name}`\n\n{_figure(h)}" for h in families))
    return markdown.replace("<!-- rooms -->", draw_architecture.table(core))


def on_page_content(html: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    html = formulas.on_a_page(html)
    return formulas.in_docstrings(html) if page.file.src_uri.startswith("reference/") else html


def _figure(house: draw_architecture.House) -> str:
    return f'<div class="house">{" ".join(draw_architecture.draw(house).splitlines())}</div>'


def _pages(package: str) -> Iterator[dict[str, str]]:
    for page in _pages_of(package):
        yield {_title(package, page): page}


def _pages_of(package: str) -> dict[str, list[str]]:
    """Page → modules on it: a page for every folder of a package, and one for what lies flat in it."""
    source = ROOT / "packages" / package.replace("_", "-") / "src"
    pages: dict[str, list[str]] = {}
    for path in sorted((source / package).rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        if parts[-1].startswith("_") and parts[-1] != "__init__":
            continue
        folder = parts[1] if len(parts) > 2 else "index"
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        pages.setdefault(f"reference/{DISTRIBUTIONS[package]}/{folder}.md", []).append(module)
    return dict(sorted(pages.items(), key=lambda item: (not item[0].endswith("index.md"), item[0])))


def _title(package: str, page: str) -> str:
    if not page.endswith("index.md"):
        return f"{package}.{Path(page).stem}"
    return PAPER if package == "selfnpo_core" else package


def _reference(package: str, page: str, modules: list[str]) -> str:
    return f"# {_title(package, page)}\n\n" + "\n\n".join(f"::: {module}" for module in modules) + "\n"


def _at_the_root() -> list[Path]:
    """Pages that are kept where people look for them."""
    return [path for name in ("CONTRIBUTING", "CHANGELOG") if (path := ROOT / f"{name}.md").is_file()]


def _notebooks() -> list[Path]:
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def _notebook(path: Path) -> str:
    """Its text and code, and one picture of what it drew when it was last looked at."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    drawn = f"../assets/notebooks/{path.stem}.png"
    if (ROOT / "docs" / "notebooks" / drawn).resolve().is_file():
        parts.append(f"## What it drew\n\n![the last picture of this notebook]({drawn})")
    title, introduction = parts[0].split("\n", 1)
    return "\n\n".join([title, f"*In the repository: `notebooks/{path.name}`.*", introduction, *parts[1:]])
