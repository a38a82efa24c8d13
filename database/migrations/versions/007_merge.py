"""Joins the branch of the entities with the branch of the event log. Changes nothing."""

revision = "007"
down_revision = ("005", "006")
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
