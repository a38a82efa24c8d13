"""Rebuilds of the log up to a time, for looking at: nobody feeds them, since they are released and no release has them.

Downgrading retires them. Their schemas stay, and can be dropped by hand.
"""

from database.migrations.script import run_script

revision = "043"
down_revision = "042"
branch_labels = None
depends_on = None

UPGRADE = """
ALTER TABLE rebuilds ADD COLUMN as_of timestamptz;
"""

DOWNGRADE = """
UPDATE read_model_builds AS b SET phase = 'retired', paused = true
FROM rebuilds AS r WHERE (r.projection, r.version) = (b.projection, b.version) AND r.as_of IS NOT NULL;
ALTER TABLE rebuilds DROP COLUMN as_of;
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
