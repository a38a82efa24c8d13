"""All pictures of the docs; `python -m operations.reference.pages` writes them next to this file."""

from __future__ import annotations

import demo_picture
import draw
import entity_diagram
import rooms


def drawings() -> dict[str, str]:
    """Return each picture by its file name."""
    return demo_picture.drawings() | draw.drawings() | entity_diagram.drawings() | rooms.drawings()
