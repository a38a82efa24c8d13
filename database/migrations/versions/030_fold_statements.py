"""The SQL of a read model may be several statements. Workers of before can't read it: they are refused, as in 026.

On the way back builds with several statements are paused: workers of before go on without them.
"""

from database.migrations.script import run_script

revision = "030"
down_revision = "029"
branch_labels = None
depends_on = None

REFUSE = """
CREATE OR REPLACE FUNCTION refuse_older_worker(known_revision integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF known_revision < __revision__ THEN
        RAISE EXCEPTION 'this worker is older than the database: stop it, and start one of the version that migrated it'
            USING ERRCODE = 'PL002';
    END IF;
END
$$;
"""

# A `;` that ends no statement may be taken for one that does: that build is paused too, and an operator can resume it.
PAUSE = r"""
UPDATE read_model_builds SET paused = true WHERE apply_sql ~ ';\s*\S';
"""


def upgrade() -> None:
    run_script(REFUSE.replace("__revision__", "30"))


def downgrade() -> None:
    run_script(REFUSE.replace("__revision__", "27"))
    run_script(PAUSE)
