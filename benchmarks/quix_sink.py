"""Quix Streams' PostgreSQL sink, as its documentation says: one table, upserted by its primary key.

Runs in an environment of its own, that of `make bench-peers`: nothing of Plant is imported.
"""

from __future__ import annotations

import json
import os
import tempfile

from quixstreams import Application
from quixstreams.sinks.community.postgresql import PostgreSQLSink


def main() -> None:
    """Sink a topic of flat JSON objects until the process is ended."""
    asked = json.loads(os.environ["PEER_SINK"])
    app = Application(
        broker_address=asked["brokers"],
        consumer_group=asked["group"],
        auto_offset_reset="earliest",
        commit_every=asked["batch_records"],
        commit_interval=5.0,
        consumer_extra_config={"fetch.min.bytes": 1_000_000, "queued.min.messages": 200_000},
        loglevel="WARNING",
        state_dir=tempfile.mkdtemp(),
        auto_create_topics=False,
        use_changelog_topics=False,
    )
    sink = PostgreSQLSink(
        **asked["postgres"],
        table_name=asked["table"],
        primary_key_columns=["agent_id"],
        upsert_on_primary_key=True,
        schema_auto_update=False,
        include_metadata=False,
    )
    frame = app.dataframe(app.topic(asked["topic"], value_deserializer="json"))
    frame.sink(sink)
    app.run()


if __name__ == "__main__":
    main()
