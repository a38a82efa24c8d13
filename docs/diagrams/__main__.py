"""All pictures of the docs; `python -m operations.reference.pages` writes them next to this file."""

from __future__ import annotations

import draw
import entity_diagram


def drawings() -> dict[str, str]:
    """File name to its content."""
    return draw.drawings() | entity_diagram.drawings()
