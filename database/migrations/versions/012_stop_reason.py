"""Why a partition is stopped, for those who look from outside: nothing is decided by it."""

from alembic import op

revision = "012"
down_revision = "011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE partition_owners ADD COLUMN stop_reason text")


def downgrade() -> None:
    op.execute("ALTER TABLE partition_owners DROP COLUMN stop_reason")
