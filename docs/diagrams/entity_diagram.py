"""Draws the tables of the entities from their classes: references are read, positions of tables are set here.

The base entity and its versions are on the left, then the kinds, then the tables behind lists of ids. A solid line is a
foreign key. A dashed line is an id that nothing enforces: it runs down a track of its target, next to the boxes.
"""

from __future__ import annotations

from draw import AMBER, FILL, GREEN, Drawing

from entities.entity import Entity
from entities.store import KINDS, LINKS
from operations.reference.database import sections
from operations.reference.tables import ColumnFacts, tables

WIDTH = 980
ROW, HEAD, FOOT, GAP = 17, 34, 8, 44
BASE_X, BASE_WIDTH = 36, 256
KIND_X, LINK_X, BOX_WIDTH = 336, 680, 236
BUS_X = 314
KIND_ORDER = ("team", "agent", "job_role", "industry")
LINK_ORDER = ("team", "agent", "job_role")
ASIDE = "skill"
"""Drawn under the tables of lists: most of them refer to it."""
TRACKS = {"entities": 18, "industries": 592, "job_roles": 612, "teams": 632, "agents": 652, "skills": 940}
VERSIONS = "entity_versions"
TOP = 20

Corner = tuple[int, int]


class Diagram(Drawing):
    """Tables with a line a column, and the lines between them."""

    def __init__(self, height: int) -> None:
        super().__init__(WIDTH, height, "The entities' tables and how they refer to each other")
        self.rows: dict[tuple[str, str], Corner] = {}

    def table(self, name: str, x: int, y: int, width: int, fill: str) -> None:
        """Draw a table, and remember where its columns are."""
        self.box(x, y, width, box_height(name), name, fill=fill)
        at = y + HEAD
        for section, columns in grouped(name).items():
            if section:
                at += ROW
                self.text(x + 10, at, section, soft=True)
            for column in columns:
                at += ROW
                keyed = column.name in keys(name)
                self.text(x + (20 if section else 10), at, column.name, small=True, bold=keyed)
                self.text(x + width - 10, at, kind_of(column), soft=True, right=True)
                self.rows[name, column.name] = (x, at - 4)


def grouped(name: str) -> dict[str, list[ColumnFacts]]:
    """Return a table's columns; those of the base entity by section."""
    columns = tables()[name].columns
    if name != Entity.__tablename__:
        return {"": list(columns)}
    return {section: [each for each in columns if each.name in names] for section, names in sections().items()}


def keys(name: str) -> tuple[str, ...]:
    """Return the columns of a table's primary key."""
    (key,) = (line for line in tables()[name].constraints if line.startswith("PRIMARY KEY"))
    return tuple(key.removeprefix("PRIMARY KEY (").removesuffix(")").split(", "))


def kind_of(column: ColumnFacts) -> str:
    plain = column.type.removesuffix(' COLLATE "C"')
    return f"{plain} or null" if column.null else plain


def box_height(name: str) -> int:
    groups = grouped(name)
    lines = sum(map(len, groups.values())) + (len(groups) if len(groups) > 1 else 0)
    return HEAD + ROW * lines + FOOT


def references() -> list[tuple[str, str, str]]:
    """Return table, column and target of every id that nothing enforces: a column is named after the kind."""
    base = Entity.__tablename__
    found = [(base, "parent_id", base), (VERSIONS, "entity_id", base)]
    links = [link.row.__tablename__ for link in LINKS.values()]
    for name in [*(kind.__tablename__ for kind in KINDS.values()), *links]:
        owner = keys(name)[0]
        for column in tables()[name].columns:
            target = KINDS.get(column.name.removesuffix("_id"))
            if column.name.endswith("_id") and target is not None and column.name != owner:
                found.append((name, column.name, target.__tablename__))
    return found


def corners() -> dict[str, Corner]:
    """Return the upper left corner of each table."""
    kinds = [KINDS[kind].__tablename__ for kind in KIND_ORDER]
    links = [LINKS[kind].row.__tablename__ for kind in LINK_ORDER]
    aside = KINDS[ASIDE].__tablename__
    assert {*kinds, aside} == {kind.__tablename__ for kind in KINDS.values()}, "a kind has no corner in the picture"
    assert len(links) == len(LINKS), "a list of ids has no corner in the picture"
    base = Entity.__tablename__
    found = {base: (BASE_X, TOP), VERSIONS: (BASE_X, TOP + box_height(base) + GAP)}
    y = TOP
    for name, neighbour in zip(kinds, [*links, aside], strict=True):
        found[name] = (KIND_X, y)
        y += box_height(name) + GAP
        # Its first line is at the height of the gap, through which its foreign key reaches the base entity.
        found[neighbour] = (LINK_X, y - GAP // 2 - HEAD - ROW + 4)
    return found


def entity_tables() -> str:
    """Return the picture."""
    found = corners()
    lower = max(y + box_height(name) for name, (_, y) in found.items())
    page = Diagram(lower + 44)
    kinds = {kind.__tablename__ for kind in KINDS.values()}
    for name, (x, y) in found.items():
        fill = AMBER if name == Entity.__tablename__ else GREEN if name in kinds else FILL
        page.table(name, x, y, BASE_WIDTH if x == BASE_X else BOX_WIDTH, fill)
    belonging(page, [name for name in found if name not in (Entity.__tablename__, VERSIONS)])
    referring(page)
    legend(page, lower + 22)
    return page.svg()


def belonging(page: Diagram, names: list[str]) -> None:
    """Draw foreign keys: all join one line next to the base entity."""
    base_y = page.rows["entities", "id"][1]
    joins = [page.rows[name, keys(name)[0]] for name in names]
    for x, y in joins:
        page.arrow((x, y), (BUS_X, y), head=False)
    levels = [base_y, *(y for _, y in joins)]
    page.arrow((BUS_X, max(levels)), (BUS_X, min(levels)), head=False)
    page.arrow((BUS_X, base_y), (BASE_X + BASE_WIDTH + 2, base_y))


def referring(page: Diagram) -> None:
    """Draw ids that nothing enforces: those of one target run down one track and arrive together."""
    for target, track in TRACKS.items():
        x, arrival = page.rows[target, "id"]
        levels = [arrival]
        for name, column, _ in (found for found in references() if found[2] == target):
            from_x, from_y = page.rows[name, column]
            levels.append(from_y)
            page.arrow(
                (from_x if track < from_x else from_x + BOX_WIDTH, from_y), (track, from_y), dashed=True, head=False
            )
        page.arrow((track, min(levels)), (track, max(levels)), dashed=True, head=False)
        page.arrow((track, arrival), (x - 2 if track < x else x + BOX_WIDTH + 2, arrival), dashed=True)


def legend(page: Diagram, y: int) -> None:
    page.arrow((36, y), (70, y))
    page.text(78, y + 4, "foreign key to (id, governance_agent_id), deleted with the entity", soft=True)
    page.arrow((520, y), (554, y), dashed=True)
    page.text(562, y + 4, "an id that nothing enforces", soft=True)
    page.text(780, y + 4, "bold: primary key", soft=True)


def drawings() -> dict[str, str]:
    """Return the picture by its file name."""
    return {"entities.svg": entity_tables()}
