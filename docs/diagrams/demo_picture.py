"""Draws what `plant demo` prints, from `demo.txt`: the standard output of a real run, unchanged.

The picture leaves out lines and ends of lines to stay readable, and marks each with an ellipsis. To renew the text:
`plant demo > docs/diagrams/demo.txt`, on a stack without data, with the environment activated.
"""

from __future__ import annotations

from pathlib import Path

from draw import Drawing

CAPTURE = Path(__file__).with_name("demo.txt")
COMMAND = "$ plant demo"
COLUMNS = 112
TABLE_LINES = 5
"""Lines of a long list that are drawn, its heads included."""
SHORTENED = ("Read model", "Positions", "Audit", "Done")
"""How sections begin that are one long list."""
CHARACTER, ROW, LEFT, TOP = 7.25, 18, 24, 50


def picture() -> str:
    """Return the picture of the captured text."""
    lines = shown_lines(CAPTURE.read_text("utf-8"))
    page = Drawing(
        int(2 * LEFT + COLUMNS * CHARACTER), TOP + ROW * len(lines) + 12, "What the demo prints", terminal=True
    )
    page.code(LEFT, 30, COMMAND, bold=True)
    for number, (line, bold) in enumerate(lines):
        page.code(LEFT, TOP + 14 + ROW * number, line, bold=bold)
    return page.svg()


def shown_lines(text: str) -> list[tuple[str, bool]]:
    """Return each line to draw, and whether it is a heading: on a terminal the first line of a section is bold."""
    shown: list[tuple[str, bool]] = []
    for section in text.strip("\n").split("\n\n"):
        head, *rows = section.split("\n")
        if head.startswith(SHORTENED) and len(rows) > TABLE_LINES:
            rows = [*rows[:TABLE_LINES], f"… {len(rows) - TABLE_LINES} more"]
        shown += [("", False), (cut(head), True), *((cut(row), False) for row in rows)]
    return shown[1:]


def cut(line: str) -> str:
    """Return the line, at most as wide as the picture."""
    return line if len(line) <= COLUMNS else line[: COLUMNS - 2].rstrip(" ,…") + " …"


def drawings() -> dict[str, str]:
    """Return the picture by its file name."""
    return {"demo.svg": picture()}
