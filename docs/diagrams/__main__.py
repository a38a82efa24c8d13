"""All pictures of the docs; `python -m operations.reference.pages` writes them next to this file."""

from __future__ import annotations

import delivery_flow
import demo_picture
import draw
import entity_diagram
import growth_plot
import performance_plot
import rooms


def drawings() -> dict[str, str]:
    """Return each picture by its file name."""
    modules = (delivery_flow, demo_picture, draw, entity_diagram, growth_plot, performance_plot, rooms)
    return {name: picture for module in modules for name, picture in module.drawings().items()}
