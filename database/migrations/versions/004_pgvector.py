"""Embeddings of skills and industries, and the indexes that find their nearest neighbours by cosine distance.

The indexes are built while the tables are in use, so this one migration is not a single transaction: run again after a
failure, it goes on where it was.
"""

from alembic import op

from database.migrations.script import run_script

revision = "004"
down_revision = "003"
branch_labels = None
depends_on = None

UPGRADE = """
CREATE EXTENSION IF NOT EXISTS vector;
ALTER TABLE skills ADD COLUMN IF NOT EXISTS embedding vector(384);
ALTER TABLE industries ADD COLUMN IF NOT EXISTS embedding vector(384);
"""

# One statement each: CONCURRENTLY can't share a transaction. A build that failed leaves an invalid index behind.
BUILD_INDEXES = (
    "DROP INDEX CONCURRENTLY IF EXISTS skills_embedding",
    "CREATE INDEX CONCURRENTLY skills_embedding ON skills USING hnsw (embedding vector_cosine_ops)",
    "DROP INDEX CONCURRENTLY IF EXISTS industries_embedding",
    "CREATE INDEX CONCURRENTLY industries_embedding ON industries USING hnsw (embedding vector_cosine_ops)",
)

DROP_INDEXES = (
    "DROP INDEX CONCURRENTLY IF EXISTS industries_embedding",
    "DROP INDEX CONCURRENTLY IF EXISTS skills_embedding",
)

# The extension stays: an administrator made it, and other tables may use it.
DOWNGRADE = """
ALTER TABLE industries DROP COLUMN embedding;
ALTER TABLE skills DROP COLUMN embedding;
"""


def upgrade() -> None:
    run_script(UPGRADE)
    with op.get_context().autocommit_block():
        for statement in BUILD_INDEXES:
            op.execute(statement)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for statement in DROP_INDEXES:
            op.execute(statement)
    run_script(DOWNGRADE)
