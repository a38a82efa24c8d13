"""The log's records, carried over to their ranges slice by slice, while workers go on writing.

A slice is a transaction. Run again after a failure, it goes on where it was. It refuses a log whose chain is broken:
what the tables of before show of that would be lost.
"""

from database.migrations.log_records import DROP_FUNCTIONS, carry_log_over
from database.migrations.script import run_script

revision = "018"
down_revision = "017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    carry_log_over()


def downgrade() -> None:
    """Leave the tables of before as they are: they have all records."""
    run_script(DROP_FUNCTIONS)
