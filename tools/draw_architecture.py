"""Draw the packages as houses: floors as storeys, packages as rooms, the imports between them as arrows.

    python tools/draw_architecture.py --output build/architecture

A room's area is its lines of code; an arrow is as thick as the imports that it stands for are many. Floors are those
of the `layers` contracts in pyproject.toml, arrows those of the import graph, so the drawing says what is so. An arrow
that runs upwards ends it with a list of the imports that made it. `make docs` draws anew.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import click
import grimp

try:
    import tomllib
except ModuleNotFoundError:  # before Python 3.11; import-linter brings it
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGES = ("selfnpo_core", "selfnpo_image", "selfnpo_video")
WIDTH, ROOM, GAP, STAIRS, MARGIN = 940, 54, 14, 52, 14
GROUND = "the paper"
COLOURS = ("#b3cde3", "#ccebc5", "#fed9a6", "#decbe4", "#fddaec", "#e5d8bd", "#ffffcc", "#cfe8e5", "#f2d4c9", "#d9d9d9")


@dataclass(frozen=True, kw_only=True)
class Room:
    """A package, a module, or all that lies flat at the bottom. apart: no room of its own floor may be imported."""

    name: str
    modules: tuple[str, ...]
    lines: int
    apart: bool = True


@dataclass(frozen=True, kw_only=True)
class House:
    """Storeys from the top; arrows: (room, room) → imports of a module of one by a module of the other."""

    name: str
    storeys: tuple[tuple[Room, ...], ...]
    arrows: Mapping[tuple[str, str], int]

    @property
    def rooms(self) -> Iterator[Room]:
        return (room for storey in self.storeys for room in storey)


def read_contracts(pyproject: Path = ROOT / "pyproject.toml") -> dict[str, list[str]]:
    """Package → its floors from the top, as the contract of import-linter names them."""
    with open(pyproject, "rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    layers = [contract for contract in contracts if contract["type"] == "layers"]
    return {box: contract["layers"] for contract in layers for box in contract.get("containers", ())}


def build_graph() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES, cache_dir=None)


def core_house(graph: grimp.ImportGraph, contracts: Mapping[str, Sequence[str]]) -> House:
    """The core's floors, with the families as the storey above them."""
    families = tuple(_room(graph, name, [name]) for name in PACKAGES[1:])
    return _furnish(graph, PACKAGES[0], (families, *_storeys(graph, PACKAGES[0], contracts[PACKAGES[0]])))


def houses(graph: grimp.ImportGraph, contracts: Mapping[str, Sequence[str]]) -> list[House]:
    """The core's, and that of every family's package whose floors are in a contract."""
    known = [name for name in PACKAGES[1:] if name in contracts]
    return [
        core_house(graph, contracts),
        *(_furnish(graph, one, _storeys(graph, one, contracts[one])) for one in known),
    ]


def grounded(graph: grimp.ImportGraph, house: House) -> House:
    """The same with the floors at the bottom on which there are only flat modules as one room."""
    flat = 0
    while flat < len(house.storeys) and all(len(room.modules) == 1 for room in house.storeys[-flat - 1]):
        flat += 1
    if not 1 < flat < len(house.storeys):
        return house
    modules = [module for storey in house.storeys[-flat:] for room in storey for module in room.modules]
    return _furnish(graph, house.name, (*house.storeys[:-flat], (_room(graph, GROUND, modules),)))


def upward(graph: grimp.ImportGraph, house: House) -> list[str]:
    """The imports that run upwards, or between rooms of a floor that are to be apart, one a line."""
    floor = {room.name: number for number, storey in enumerate(house.storeys) for room in storey}
    rooms = {room.name: room for room in house.rooms}
    found = []
    for (above, below), _ in sorted(house.arrows.items()):
        allowed = floor[above] < floor[below] or (floor[above] == floor[below] and not rooms[above].apart)
        if not allowed:
            found += [f"{a} imports {b}" for a, b in _imports(graph, rooms[above], rooms[below])]
    return found


def table(house: House) -> str:
    """The same as a Markdown table."""
    rows = ["| floor | room | lines | imports | imported |", "| --- | --- | --- | --- | --- |"]
    for number, storey in enumerate(house.storeys):
        for room in storey:
            out = sum(count for (above, _), count in house.arrows.items() if above == room.name)
            into = sum(count for (_, below), count in house.arrows.items() if below == room.name)
            rows.append(f"| {len(house.storeys) - number - 1} | `{room.name}` | {room.lines:,} | {out} | {into} |")
    return "\n".join(rows)


def draw(house: House) -> str:
    """The drawing, as SVG."""
    boxes = _places(house)
    height = max(y + h for _, y, _, h in boxes.values()) + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'font-family="sans-serif" font-size="13"><title>{escape(house.name)}: floors, rooms and imports</title>',
        "<style>.arrow{fill:none;stroke:var(--md-default-fg-color,#222);opacity:.28}.arrow:hover{opacity:1}</style>",
        *_arrows(house, boxes),
        *_rooms(house, boxes),
        "</svg>",
    ]
    return "\n".join(lines)


def _storeys(graph: grimp.ImportGraph, package: str, layers: Sequence[str]) -> tuple[tuple[Room, ...], ...]:
    return tuple(_storey(graph, package, layer) for layer in layers)


def _storey(graph: grimp.ImportGraph, package: str, layer: str) -> tuple[Room, ...]:
    """A line of the contract: `a | b` are apart from each other, `a : b` need not be."""
    names = [name.strip(" ()") for name in layer.replace(":", "|").split("|")]
    return tuple(_room(graph, name, [f"{package}.{name}"], apart=":" not in layer) for name in names)


def _room(graph: grimp.ImportGraph, name: str, modules: Sequence[str], apart: bool = True) -> Room:
    every = tuple(module for top in modules for module in (top, *sorted(graph.find_descendants(top))))
    return Room(name=name, modules=every, lines=sum(_lines(module) for module in every), apart=apart)


def _lines(module: str) -> int:
    package = module.split(".", 1)[0]
    path = ROOT / "packages" / package.replace("_", "-") / "src" / Path(*module.split("."))
    file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    return len(file.read_text(encoding="utf-8").splitlines())


def _furnish(graph: grimp.ImportGraph, name: str, storeys: tuple[tuple[Room, ...], ...]) -> House:
    rooms = [room for storey in storeys for room in storey]
    home = {module: room.name for room in rooms for module in room.modules}
    arrows: Counter[tuple[str, str]] = Counter()
    for module, room in home.items():
        for other in graph.find_modules_directly_imported_by(module):
            if home.get(other, room) != room:
                arrows[room, home[other]] += 1
    return House(name=name, storeys=storeys, arrows=arrows)


def _imports(graph: grimp.ImportGraph, above: Room, below: Room) -> Iterator[tuple[str, str]]:
    for module in above.modules:
        for other in sorted(graph.find_modules_directly_imported_by(module) & set(below.modules)):
            yield module, other


Box = tuple[float, float, float, float]
"""x, y, width, height."""


def _places(house: House) -> dict[str, Box]:
    """One area for one line of code, throughout; a storey that would be too wide is higher instead."""
    room = WIDTH - 2 * MARGIN
    widest = max(sum(one.lines for one in storey) for storey in house.storeys[1:])
    each = (room - 2 * GAP) * ROOM / widest
    boxes, y = {}, float(MARGIN)
    for storey in house.storeys:
        free = room - GAP * (len(storey) - 1)
        lines = sum(one.lines for one in storey)
        height = max(ROOM, lines * each / free)
        x = (WIDTH - lines * each / height - GAP * (len(storey) - 1)) / 2
        for one in storey:
            width = one.lines * each / height
            boxes[one.name] = x, y, width, height
            x += width + GAP
        y += height + STAIRS
    return boxes


def _rooms(house: House, boxes: Mapping[str, Box]) -> Iterator[str]:
    for number, storey in enumerate(house.storeys):
        colour = COLOURS[number % len(COLOURS)]
        for room in storey:
            x, y, width, height = boxes[room.name]
            middle, centre = x + width / 2, y + height / 2
            yield f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="3" fill="{colour}" '
            yield f'stroke="#555"><title>{escape(_title(room))}</title></rect>'
            turned = f' transform="rotate(-90 {middle:.1f} {centre:.1f})"' if width < 7.2 * len(room.name) else ""
            size = ' font-size="11"' if turned else ""
            yield f'<g pointer-events="none" text-anchor="middle" fill="#111"{turned}{size}>'
            yield f'<text x="{middle:.1f}" y="{centre - 1:.1f}">{escape(room.name)}</text>'
            yield f'<text x="{middle:.1f}" y="{centre + 14:.1f}" font-size="10">{room.lines:,}</text></g>'


def _title(room: Room) -> str:
    tops = [module.rpartition(".")[2] for module in room.modules] if room.name == GROUND else [room.modules[0]]
    return f"{', '.join(tops)}: {room.lines:,} lines in {len(room.modules)} modules"


def _arrows(house: House, boxes: Mapping[str, Box]) -> Iterator[str]:
    """From the floor of a room to the ceiling of another; each room's ends lie in the order of what they lead to."""

    def spread(name: str, others: Sequence[str]) -> dict[str, float]:
        x, _, width, _ = boxes[name]
        ordered = sorted(others, key=lambda other: boxes[other][0] + boxes[other][2] / 2)
        return {other: x + width * (place + 1) / (len(ordered) + 1) for place, other in enumerate(ordered)}

    down = {r.name: spread(r.name, [b for a, b in house.arrows if a == r.name]) for r in house.rooms}
    up = {r.name: spread(r.name, [a for a, b in house.arrows if b == r.name]) for r in house.rooms}
    for (above, below), count in house.arrows.items():
        x, y = down[above][below], boxes[above][1] + boxes[above][3]
        to_x, to_y = up[below][above], boxes[below][1]
        bend = (to_y - y) / 2
        path = f"M{x:.1f} {y:.1f}C{x:.1f} {y + bend:.1f} {to_x:.1f} {to_y - bend:.1f} {to_x:.1f} {to_y:.1f}"
        title = escape(f"{above} → {below}: {count}")
        yield f'<path class="arrow" d="{path}" stroke-width="{0.7 * count**0.5:.2f}"><title>{title}</title></path>'


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path), default="build/architecture", help="Folder for the SVGs.")
def main(output: Path) -> None:
    graph = build_graph()
    drawn = houses(graph, read_contracts())
    wrong = [line for house in drawn for line in upward(graph, house)]
    if wrong:
        raise click.ClickException("arrows run upwards:\n" + "\n".join(wrong))
    output.mkdir(parents=True, exist_ok=True)
    for house in drawn:
        (output / f"{house.name}.svg").write_text(draw(grounded(graph, house)), encoding="utf-8")
        click.echo(output / f"{house.name}.svg")


if __name__ == "__main__":
    main()
