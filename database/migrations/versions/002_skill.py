"""Skills."""

from database.migrations.script import run_script

revision = "002"
down_revision = "001"
branch_labels = None
depends_on = None

UPGRADE = """
CREATE TABLE skills (
    id                   uuid PRIMARY KEY,
    governance_agent_id  text COLLATE "C" NOT NULL DEFAULT 'genesis',
    name                 text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 200),
    description          text NOT NULL DEFAULT '' CHECK (char_length(description) <= 10000),
    category             text COLLATE "C" NOT NULL
                         CHECK (category IN ('technical', 'soft_skill', 'domain_expertise')),
    FOREIGN KEY (id, governance_agent_id) REFERENCES entities (id, governance_agent_id) ON DELETE CASCADE
) WITH (fillfactor = 80);
CREATE INDEX skills_name ON skills (governance_agent_id, lower(name));
"""

DOWNGRADE = """
DROP TABLE skills;
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
