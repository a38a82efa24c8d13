"""The index by which the relay finds poison records of the log: see projections/poison_rows.py.

It is built while the log is written, so this is not a transaction: run again after a failure, it begins anew.
"""

from alembic import op

revision = "010"
down_revision = "009"
branch_labels = None
depends_on = None

DROP = "DROP INDEX CONCURRENTLY IF EXISTS event_stream_poison"
"""A build that failed leaves an invalid index behind."""

BUILD = (
    'CREATE INDEX CONCURRENTLY event_stream_poison ON event_stream (topic, partition, "offset")'
    " WHERE disposition = 'poison'"
)


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute(DROP)
        # The build keeps nobody from anything, and has to wait for transactions that are older.
        op.execute("SET lock_timeout = 0")
        op.execute(BUILD)
        op.execute("RESET lock_timeout")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute(DROP)
