"""The tables of the log, for tests."""

from __future__ import annotations

from devstack import sql


def set_range_offsets(owner_url: str, offsets: int) -> None:
    """Make ranges of the log end after so many offsets, at most 2^20. Call it before the first record is logged."""
    sql.execute(
        owner_url,
        [
            "CREATE OR REPLACE FUNCTION log_range_offsets() RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE"
            f" RETURN {offsets}"
        ],
    )
