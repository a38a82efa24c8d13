"""Which producers may send binary CloudEvents. Nobody could be allowed before, and nobody is afterwards.

A process of before this migration goes on taking them from everybody until it is replaced.
"""

from database.migrations.script import run_script

revision = "011"
down_revision = "010"
branch_labels = None
depends_on = None

UPGRADE = """
ALTER TABLE producers ADD COLUMN binary_mode boolean NOT NULL DEFAULT false;
GRANT INSERT (binary_mode), UPDATE (binary_mode) ON producers TO plant_api;
"""

DOWNGRADE = """
ALTER TABLE producers DROP COLUMN binary_mode;
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
