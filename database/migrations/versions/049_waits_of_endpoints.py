"""An index of deliveries that wait by their endpoint: a deliverer reads those that one endpoint can have.

Of an endpoint that hangs or fails for long thousands are due, and one at a time is tried. Running deliverers go on,
once it is made: meanwhile their rounds wait.
"""

from database.migrations.script import run_script

revision = "049"
down_revision = "048"
branch_labels = None
depends_on = None

UPGRADE = """
CREATE INDEX delivery_waits_endpoint ON delivery_waits (partition, endpoint_id, due_at);
"""

DOWNGRADE = """
DROP INDEX delivery_waits_endpoint;
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
