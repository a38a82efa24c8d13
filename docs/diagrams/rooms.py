"""Draws the packages as rooms: rows are the layers of the import contract, arrows are the imports of the code.

An arrow is left out where a longer way by other arrows leads to the same room. Where a room stands in its row is
written here; how an arrow runs around other rooms is searched.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterable, Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

from draw import AMBER, FILL, GREEN, Drawing

ROOT = Path(__file__).parents[2]
WIDTH, TOP, BOX_HEIGHT, GAP = 1190, 20, 84, 46
GRID, APART, CLEAR = 20, 14, 7
SPANS = {
    "operations": (20, 960),
    "devstack": (1000, 1170),
    "ingress": (20, 230),
    "api": (510, 710),
    "relay": (750, 960),
    "deliveries": (1000, 1170),
    "projections": (270, 710),
    "streams": (270, 610),
    "signing": (20, 230),
    "schemas": (270, 480),
    "entities": (510, 720),
    "audit": (750, 960),
    "server": (1000, 1170),
    "database": (510, 960),
    "runtime": (20, 1170),
}
"""From where to where a room reaches."""
PURPOSES = {
    "operations": ("the command line plant, the wiring of each process, the demo, generated reference pages",),
    "devstack": ("Kafka and Postgres", "as local processes"),
    "ingress": ("webhooks in, over HTTP:", "limits, keys, problems"),
    "api": ("reads, over HTTP:", "read models, tokens"),
    "relay": ("publishes rows of Postgres:", "outbox, dead letters"),
    "deliveries": ("webhooks out:", "guard, signed requests"),
    "projections": ("the engine that writes the log and the read models,", "one folder a read model"),
    "streams": ("Kafka: topics, batches, ownership,", "producer, consumer"),
    "signing": ("Standard Webhooks:", "HMAC and ed25519"),
    "schemas": ("event types, registry,", "Avro reader and writer"),
    "entities": ("agents, skills, job roles,", "industries, teams"),
    "audit": ("hash chain, and a verifier", "that shares no code with it"),
    "server": ("HTTP server: limits,", "turns, problems"),
    "database": ("connector and pool, roles, migrations",),
    "runtime": ("settings, logging, metrics, clock",),
}
FILLS = {"operations": AMBER, "projections": GREEN, "streams": GREEN}

Point = tuple[int, int]


class Room(NamedTuple):
    """A package's box."""

    left: int
    top: int
    right: int

    @property
    def bottom(self) -> int:
        """Its lower edge."""
        return self.top + BOX_HEIGHT


def layers() -> list[list[str]]:
    """Return the rows of packages, the highest first, as the import contract has them; others stand in the first.

    A package in parentheses is one that need not exist.
    """
    options = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    packages = set(options["root_packages"])
    for contract in options["contracts"]:
        if contract["type"] == "layers" and "containers" not in contract:
            rows = [re.findall(r"\w+", row) for row in contract["layers"]]
            rows = [[name for name in row if name in packages] for row in rows]
            aside = packages.difference(*rows)
            return [[*rows[0], *sorted(aside)], *(row for row in rows[1:] if row)]
    raise LookupError("pyproject.toml has no contract on the layers of the packages")


def imports(packages: Iterable[str]) -> dict[str, set[str]]:
    """Return the other packages that each package's code imports."""
    known = set(packages)
    return {
        name: {target for path in (ROOT / name).rglob("*.py") for target in imported(path)} & known - {name}
        for name in known
    }


def imported(path: Path) -> Iterator[str]:
    """Yield the top-level names that a file imports."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            yield node.module.partition(".")[0]


def shortest(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Return the arrows that no longer way makes needless."""

    def reached(name: str) -> set[str]:
        return graph[name].union(*(reached(below) for below in graph[name]))

    below = {name: set().union(*(reached(target) for target in targets)) for name, targets in graph.items()}
    return sorted((name, target) for name, targets in graph.items() for target in targets - below[name])


def rooms(rows: list[list[str]]) -> dict[str, Room]:
    """Return each package's box."""
    missing = {name for row in rows for name in row} - SPANS.keys()
    assert not missing, f"docs/diagrams/rooms.py: SPANS and PURPOSES lack {missing}"
    return {
        name: Room(SPANS[name][0], TOP + number * (BOX_HEIGHT + GAP), SPANS[name][1])
        for number, row in enumerate(rows)
        for name in row
    }


class Router:
    """Finds ways around boxes, and not along ways that are taken already."""

    def __init__(self, boxes: dict[str, Room]) -> None:
        self._boxes = boxes
        self._ways: list[list[Point]] = []

    def way(self, source: Room, target: Room) -> list[Point]:
        """Return the corners of the cheapest way: straight if there is one, else with two bends."""
        for kind in (straight(source, target), bent(source, target)):
            ways = [way for way in kind if not self._blocked(way, source, target)]
            if ways:
                self._ways.append(min(ways, key=lambda way: self._cost(way, target)))
                return self._ways[-1]
        raise LookupError("an arrow has no way around the rooms: move one in SPANS")

    def _blocked(self, way: list[Point], *ends: Room) -> bool:
        others = [box for box in self._boxes.values() if box not in ends]
        return any(touches(line, box) for line in pairwise(way) for box in others)

    def _cost(self, way: list[Point], target: Room) -> tuple[int, int, int, list[Point]]:
        taken = [line for other in self._ways for line in pairwise(other)]
        shared = sum(alongside(line, other) for line in pairwise(way) for other in taken)
        crossed = sum(crosses(line, other) for line in pairwise(way) for other in taken)
        length = sum(abs(x - to_x) + abs(y - to_y) for (x, y), (to_x, to_y) in pairwise(way))
        aside = abs(way[-1][0] - (target.left + target.right) // 2)
        return shared, crossed, length + aside // 4, way


def straight(source: Room, target: Room) -> Iterator[list[Point]]:
    """Yield ways from the lower edge of one box, or from its side where the other stands in the same row."""
    if source.top == target.top:
        y, right = source.top + BOX_HEIGHT // 2, source.right < target.left
        yield [(source.right if right else source.left, y), (target.left - 2 if right else target.right + 2, y)]
    else:
        both = range(max(source.left, target.left) + GRID, min(source.right, target.right) - GRID + 1, GRID)
        yield from ([(x, source.bottom), (x, target.top - 2)] for x in both)


def bent(source: Room, target: Room) -> Iterator[list[Point]]:
    """Yield ways that go down, sideways and down again."""
    starts, ends = (range(box.left + GRID, box.right - GRID + 1, GRID) for box in (source, target))
    levels = range(source.bottom + APART, target.top - APART + 1, APART // 2)
    for x, to_x, y in product(starts, ends, levels):
        if abs(x - to_x) >= GRID:
            yield [(x, source.bottom), (x, y), (to_x, y), (to_x, target.top - 2)]


def touches(line: tuple[Point, Point], box: Room) -> bool:
    """Return whether a line runs through a box or too close to it."""
    (x, y), (to_x, to_y) = line
    across = max(x, to_x) > box.left - CLEAR and min(x, to_x) < box.right + CLEAR
    return across and max(y, to_y) > box.top - CLEAR and min(y, to_y) < box.bottom + CLEAR


def alongside(line: tuple[Point, Point], other: tuple[Point, Point]) -> bool:
    """Return whether two lines have the same direction and nearly the same way."""
    for axis in (0, 1):
        across = 1 - axis
        if line[0][axis] == line[1][axis] and other[0][axis] == other[1][axis]:
            overlap = min(max(p[across] for p in line), max(p[across] for p in other)) - max(
                min(p[across] for p in line), min(p[across] for p in other)
            )
            if abs(line[0][axis] - other[0][axis]) < APART and overlap > 0:
                return True
    return False


def crosses(line: tuple[Point, Point], other: tuple[Point, Point]) -> bool:
    """Return whether two lines of different directions meet."""
    for flat, steep in ((line, other), (other, line)):
        if flat[0][1] == flat[1][1] and steep[0][0] == steep[1][0]:
            x, y = steep[0][0], flat[0][1]
            if min(flat)[0] < x < max(flat)[0] and min(steep)[1] < y < max(steep)[1]:
                return True
    return False


def picture() -> str:
    """Return the picture of the rooms."""
    rows = layers()
    boxes = rooms(rows)
    height = max(box.bottom for box in boxes.values()) + 40
    page = Drawing(WIDTH, height, "The packages: a row a layer, an arrow an import")
    router = Router(boxes)
    for name, target in shortest(imports(boxes)):
        page.arrow(*router.way(boxes[name], boxes[target]))
    for name, box in boxes.items():
        purpose = PURPOSES[name]
        page.box(box.left, box.top, box.right - box.left, BOX_HEIGHT, f"{name}/", *purpose, fill=FILLS.get(name, FILL))
        folders = ", ".join(inner(name))
        if folders:
            page.text((box.left + box.right) // 2, box.bottom - 6, folders, small=True, middle=True)
    page.text(20, height - 14, "A package may import those in rows below its own.", soft=True)
    page.text(360, height - 14, "Arrows that a longer way makes needless are left out.", soft=True)
    return page.svg()


def inner(name: str) -> list[str]:
    """Return the packages inside a package."""
    return [f"{path.parent.name}/" for path in sorted((ROOT / name).glob("*/__init__.py"))]


def drawings() -> dict[str, str]:
    """Return the picture by its file name."""
    return {"rooms.svg": picture()}
