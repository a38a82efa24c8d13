"""Draws the pictures of the docs as SVG: `python -m operations.reference.pages` writes them next to this file.

Plain shapes on white, with one font size for names and one for descriptions, so that they read on any background.
"""

from __future__ import annotations

from html import escape

INK, SOFT, LINE, FILL = "#1c2733", "#536471", "#7b8a97", "#f4f7f9"
GREEN, AMBER, RED = "#e3f4e7", "#fff3d6", "#fde4e1"
DARK, PALE, WHITE = "#10161d", "#c9d4de", "#ffffff"
MONOSPACE = "font-family='ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace'"
FONT = "font-family='system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif'"


class Drawing:
    """Shapes on a white page, or on a dark one as terminals are, in the order in which they are added."""

    def __init__(self, width: int, height: int, title: str, *, terminal: bool = False) -> None:
        self._parts = [
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' "
            f"height='{height}' role='img' {FONT}>",
            f"<title>{escape(title)}</title>",
            "<defs><marker id='head' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' "
            f"orient='auto'><path d='M0 0 L8 4 L0 8 z' fill='{LINE}'/></marker></defs>",
            f"<rect width='{width}' height='{height}' rx='8' fill='{DARK if terminal else WHITE}'/>",
        ]

    def box(self, x: int, y: int, width: int, height: int, name: str, *lines: str, fill: str = FILL) -> None:
        """Draw a box with a name and lines under it."""
        self._parts.append(
            f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='6' fill='{fill}' stroke='{LINE}'/>"
        )
        self.text(x + width // 2, y + 22, name, bold=True, middle=True)
        for number, line in enumerate(lines):
            self.text(x + width // 2, y + 41 + 16 * number, line, soft=True, middle=True)

    def bar(self, x: int, y: int, width: int, height: int) -> None:
        """Draw a bar of a chart."""
        self._parts.append(f"<rect x='{x}' y='{y}' width='{width}' height='{height}' fill='{GREEN}' stroke='{LINE}'/>")

    def text(
        self,
        x: int,
        y: int,
        line: str,
        *,
        bold: bool = False,
        soft: bool = False,
        small: bool = False,
        middle: bool = False,
        right: bool = False,
    ) -> None:
        """Write one line; its left end, its middle or its right end is at x."""
        weight = " font-weight='600'" if bold else ""
        anchor = " text-anchor='middle'" if middle else " text-anchor='end'" if right else ""
        colour, size = SOFT if soft else INK, 12 if soft or small else 14
        self._parts.append(
            f"<text x='{x}' y='{y}' font-size='{size}' fill='{colour}'{weight}{anchor}>{escape(line)}</text>"
        )

    def arrow(self, *points: tuple[int, int], dashed: bool = False, head: bool = True) -> None:
        """Draw a line through the points, with a head at its end unless it runs into another line."""
        path = " ".join(f"{x},{y}" for x, y in points)
        dashes = " stroke-dasharray='4 4'" if dashed else ""
        marker = " marker-end='url(#head)'" if head else ""
        self._parts.append(
            f"<polyline points='{path}' fill='none' stroke='{LINE}' stroke-width='1.5'{dashes}{marker}/>"
        )

    def code(self, x: int, y: int, line: str, *, bold: bool = False) -> None:
        """Write one line of a terminal, as wide as its characters."""
        if line:
            weight, colour = (" font-weight='600'", WHITE) if bold else ("", PALE)
            self._parts.append(
                f"<text x='{x}' y='{y}' font-size='12' fill='{colour}'{weight} xml:space='preserve' {MONOSPACE}>"
                f"{escape(line)}</text>"
            )

    def svg(self) -> str:
        """Return the whole picture."""
        return "\n".join([*self._parts, "</svg>"]) + "\n"


def flow() -> str:
    """Draw an event's way through Plant."""
    page = Drawing(980, 370, "An event's way: producer, ingress, Kafka, worker, Postgres, readers")
    page.box(16, 20, 150, 92, "producers", "sign each request", "(Standard Webhooks)")
    page.box(220, 20, 150, 92, "plant ingress", "signature, limits,", "schema; 200 when", "Kafka has it")
    page.box(424, 20, 150, 92, "Kafka", "genesis.events", "never deleted:", "the source of truth", fill=AMBER)
    page.box(628, 20, 150, 92, "plant worker", "record batches,", "decoded in columns,", "chained")
    page.box(812, 20, 150, 92, "auditors", "plant audit verify", "recomputes every", "hash")
    page.arrow((166, 66), (218, 66))
    page.arrow((370, 58), (422, 58))
    page.arrow((574, 66), (626, 66))
    page.text(192, 58, "HTTP", soft=True, middle=True)
    page.text(396, 50, "Avro", soft=True, middle=True)
    page.box(628, 166, 334, 170, "Postgres: one transaction a batch", fill=GREEN)
    page.box(644, 200, 302, 56, "log_records", "every record's bytes, in a hash chain", fill="white")
    page.box(644, 266, 146, 56, "read models", "tables to query", fill="white")
    page.box(800, 266, 146, 56, "checkpoints", "the next offsets", fill="white")
    page.arrow((703, 112), (703, 164))
    page.text(713, 142, "COPY, apply.sql", soft=True)
    page.arrow((887, 164), (887, 114))
    page.box(424, 166, 150, 76, "consumers", "plant consume, or", "any Kafka client")
    page.arrow((499, 112), (499, 164))
    page.box(424, 260, 150, 76, "readers", "as plant_api,", "through views")
    page.arrow((642, 294), (576, 294))
    page.box(
        16,
        166,
        354,
        76,
        "operators",
        "their actions (plant keys …) go to plant.operations",
        "first, and are logged and chained like any event",
    )
    page.arrow((370, 204), (396, 204), (396, 90), (422, 90), dashed=True)
    page.box(
        16, 260, 354, 76, "plant relay", "publishes dead letters, and changes that", "were made in the database itself"
    )
    page.arrow((795, 336), (795, 354), (193, 354), (193, 338))
    page.arrow((370, 298), (396, 298), (396, 204), dashed=True, head=False)
    return page.svg()


def exactly_once() -> str:
    """Draw two workers and one partition: what the fence is for."""
    page = Drawing(980, 480, "A frozen worker, its successor, and the fencing token between them")
    columns = {"worker A": 20, "Postgres": 350, "worker B": 680}
    for name, x in columns.items():
        page.text(x + 140, 30, name, bold=True, middle=True)
    left, middle, right = columns.values()
    page.box(left, 46, 280, 50, "acquires the partition", "token 7, reads on at offset 0")
    page.box(middle, 46, 280, 50, "owner: A, token 7", "checkpoint 0", fill=AMBER)
    page.arrow((300, 71), (348, 71))
    page.box(left, 112, 280, 50, "batch 0–99", "locks token 7, writes rows, commits", fill=GREEN)
    page.box(middle, 112, 280, 50, "rows 0–99, checkpoint 100", "in the same commit", fill=GREEN)
    page.arrow((300, 137), (348, 137))
    page.box(left, 178, 280, 50, "batch 100–199", "frozen in the middle of its COPY", fill=RED)
    page.arrow((300, 203), (348, 203), dashed=True)
    page.text(355, 207, "not committed, still holds its locks", soft=True)
    page.box(
        right,
        244,
        280,
        66,
        "the group gives B the partition",
        "ends A's backend, gets token 8,",
        "reads checkpoint 100, seeks there",
    )
    page.box(middle, 252, 280, 50, "owner: B, token 8", "checkpoint 100", fill=AMBER)
    page.arrow((680, 277), (632, 277))
    page.box(right, 326, 280, 50, "batch 100–199", "locks token 8, writes rows, commits", fill=GREEN)
    page.box(middle, 326, 280, 50, "rows 100–199, checkpoint 200", "once", fill=GREEN)
    page.arrow((680, 351), (632, 351))
    page.box(
        left,
        392,
        280,
        68,
        "wakes up",
        "its connection is gone, and token 7",
        "is not current: nothing happens",
        fill=RED,
    )
    page.arrow((300, 421), (348, 421), dashed=True)
    page.text(355, 425, "refused", soft=True)
    return page.svg()


COLUMNS, COLUMN_WIDTH = (150, 424, 698), 264
"""The ranges of a partition's log: two that are closed, and the open one."""


def log_ranges() -> str:
    """Draw one partition's log: what its owner remembers, what lies in Postgres, and what proves what."""
    page = Drawing(980, 588, "A partition's log: memory, closed ranges, the open range, and what each of them proves")
    first, second, last = COLUMNS
    page.box(first, 14, 812, 36, "the event ids of a batch", fill=WHITE)
    memory = ("filter: 2 MiB", "16 bits an id, no id left out;", "a new id in 700 is “perhaps”")
    exact = ("ids with their offsets", "8 bytes an id: 44 bits of its hash, offset;", "a filter in front of them")
    closed = ("key: offset", "unique index: event ids applied or parked", "frozen, not written any more")
    for x, offsets in ((first, "0 to 1,048,575"), (second, "1,048,576 to 2,097,151")):
        page.box(x, 84, COLUMN_WIDTH, 70, *memory)
        page.text(x + 108, 190, "perhaps: ask its index", soft=True)
        page.box(x, 220, COLUMN_WIDTH, 100, "closed range", offsets, *closed, fill=GREEN)
    page.box(last, 84, COLUMN_WIDTH, 70, *exact, fill=AMBER)
    page.text(last + 108, 190, "perhaps: read that offset", soft=True)
    lines = (
        "2,097,152 to now",
        "key: offset",
        "no key on event ids, but an index of blocks",
        "its owner alone writes it, under the fence",
    )
    page.box(last, 220, COLUMN_WIDTH, 100, "open range", *lines, fill=AMBER)
    for x in COLUMNS:
        page.arrow((x + 100, 50), (x + 100, 82))
        page.arrow((x + 100, 154), (x + 100, 218), dashed=True)
    for y, name in ((114, "memory of"), (132, "the owner"), (268, "Postgres"), (354, "chain"), (430, "proves")):
        page.text(20, y, name, bold=True)
    page.arrow((first, 349), (962, 349))
    page.text(first, 370, "each hash covers the record and the hash before: v1 the record alone,", soft=True)
    page.text(first, 386, "v2 also its disposition and event id, from a control record on", soft=True)
    draw_proofs(page)
    return page.svg()


def draw_proofs(page: Drawing) -> None:
    """Add what proves what to the picture of the log."""
    first, second, last = COLUMNS
    width, wide = COLUMN_WIDTH, last - first - 10
    page.box(
        first, 404, width, 66, "the unique index", "no id was applied or parked twice", "in this range", fill=WHITE
    )
    lines = ("every earlier range was asked for", "its ids, as the log holds them")
    page.box(second, 404, width, 66, "closed_at", *lines, fill=WHITE)
    lines = ("nobody else wrote, so the ids in", "memory are those of the log")
    page.box(last, 404, width, 66, "the fence", *lines, fill=WHITE)
    lines = (
        "no record before a good head was changed, removed, added or moved;",
        "a head kept elsewhere: nor was the chain made again, nor its end cut off",
    )
    page.box(first, 484, wide, 66, "the chain", *lines, fill=WHITE)
    lines = ("the records themselves; the last one is", "compared when a partition is acquired")
    page.box(last, 484, width, 66, "Kafka", *lines, fill=WHITE)
    page.text(
        first, 574, "A range has 2^20 offsets. The newest is open; the first two stand for all others.", soft=True
    )


def drawings() -> dict[str, str]:
    """Return each picture by its file name."""
    return {"flow.svg": flow(), "exactly-once.svg": exactly_once(), "log-ranges.svg": log_ranges()}
