"""A column that holds one value, made without a query: polars runs those in a thread that all batches share."""

from __future__ import annotations

from schemas.polars_import import polars as pl


def constant_column(name: str, value: object, dtype: pl.DataType | type[pl.DataType], rows: int) -> pl.Series:
    """Return a column of so many rows that all hold this value."""
    return pl.Series(name, [value], dtype=dtype).new_from_index(0, rows)
