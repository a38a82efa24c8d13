"""Polars, imported with one thread: more would fight the broker and the database for cores.

Import it from here and nowhere else, since the number of threads is read once, at the first import.
"""

from __future__ import annotations

import os

os.environ.setdefault("POLARS_MAX_THREADS", "1")

import polars

__all__ = ["polars"]
