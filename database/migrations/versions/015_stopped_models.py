"""Why a read model does not follow its partition."""

from database.migrations.script import run_script

revision = "015"
down_revision = "014"
branch_labels = None
depends_on = None

UPGRADE = """
-- For those who look from outside: nothing is decided by it. Null while the projection follows the log.
ALTER TABLE checkpoints ADD COLUMN stop_reason text;
"""

DOWNGRADE = """
ALTER TABLE checkpoints DROP COLUMN stop_reason;
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
