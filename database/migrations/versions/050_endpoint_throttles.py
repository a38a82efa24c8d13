"""Until when an endpoint that asked for time gets no attempts, so that the next owner of its partition keeps to it."""

from database.migrations.script import run_script

revision = "050"
down_revision = "049"
branch_labels = None
depends_on = None

UPGRADE = """
-- One that asked for no time since its partition was last acquired may have a row that is over.
CREATE TABLE endpoint_throttles (
    endpoint_id      uuid PRIMARY KEY,
    partition        integer NOT NULL CHECK (partition >= 0),
    throttled_until  timestamptz NOT NULL,
    FOREIGN KEY (endpoint_id) REFERENCES endpoints (id)
) WITH (fillfactor = 70);
CREATE INDEX endpoint_throttles_partition ON endpoint_throttles (partition);

GRANT SELECT, INSERT, UPDATE, DELETE ON endpoint_throttles TO plant_deliverer;
GRANT SELECT ON endpoint_throttles TO plant_operator;
"""

DOWNGRADE = """
DROP TABLE endpoint_throttles;
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
