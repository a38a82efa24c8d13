"""The log's records, carried over to their ranges slice by slice, while workers go on writing.

A slice is a transaction. Run again after a failure, it goes on where it was. It refuses a log whose chain is broken:
what the tables of before show of that would be lost.
"""

from alembic import op

from database.migrations.carry_log_over import FUNCTIONS
from database.migrations.script import run_script

revision = "018"
down_revision = "017"
branch_labels = None
depends_on = None

RECORDS_MAX = 50_000
"""Records of a slice."""


def upgrade() -> None:
    with op.get_context().autocommit_block():
        run_script(FUNCTIONS)
        # Postgres plans with statistics; a load that was never analysed would be compared row by row.
        run_script("SET enable_nestloop = off; SET enable_hashjoin = off; SET enable_seqscan = off;")
        run_script(f"CALL carry_log_over({RECORDS_MAX});")
        run_script("RESET enable_nestloop; RESET enable_hashjoin; RESET enable_seqscan;")


def downgrade() -> None:
    """Leave the tables of before as they are: they have all records."""
    run_script("DROP PROCEDURE IF EXISTS carry_log_over(integer);")
    run_script("DROP FUNCTION IF EXISTS carry_log_slice(text, integer, integer);")
