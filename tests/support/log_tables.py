"""The tables of the log, for tests."""

from __future__ import annotations

from devstack import sql

DROP_RANGES = """
DO $$
DECLARE
    chain record;
BEGIN
    FOR chain IN SELECT DISTINCT topic, partition FROM log_ranges LOOP
        EXECUTE format('DROP TABLE log.%I', log_table_name(chain.topic, chain.partition));
    END LOOP;
    DELETE FROM log_ranges;
END
$$
"""


def make_first_ranges(owner_url: str, topic: str, partitions: int) -> None:
    """Make the first range of each partition, so that tests write rows alone, and their database can be used again."""
    sql.execute(owner_url, [f"SELECT add_log_range('{topic}', n, 0) FROM generate_series(0, {partitions - 1}) AS n"])


def set_range_offsets(owner_url: str, offsets: int) -> None:
    """Make ranges of the log end after so many offsets, at most 2^20; the ranges that there are go, with their rows."""
    sql.execute(
        owner_url,
        [
            DROP_RANGES,
            "CREATE OR REPLACE FUNCTION log_range_offsets() RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE"
            f" RETURN {offsets}",
        ],
    )
