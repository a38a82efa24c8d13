"""Builds of read models keep their own SQL, and the hash that it is locked with.

Workers run what a build keeps, so a release that brings another version still feeds this one. Builds of before have no
SQL until `plant db upgrade`, after the migrations, stores that of the release's version. Older ones are not fed, as
before.
"""

from database.migrations.script import run_script

revision = "021"
down_revision = "020"
branch_labels = None
depends_on = None

UPGRADE = """
ALTER TABLE read_model_builds
    ADD COLUMN tables_sql text,
    ADD COLUMN apply_sql text,
    ADD COLUMN sha256 text COLLATE "C" CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    ADD CONSTRAINT read_model_builds_sql CHECK (num_nulls(tables_sql, apply_sql, sha256) IN (0, 3)),
    ADD COLUMN paused boolean NOT NULL DEFAULT false;
GRANT SELECT ON read_model_builds TO plant_writer;
GRANT UPDATE (paused) ON read_model_builds TO plant_operator;

-- What a version computes never changes: another fold is another version. The tables of a build are those of its SQL.
CREATE FUNCTION refuse_changed_build() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the SQL of version % of the read model % is stored already and never changes', OLD.version,
        OLD.projection USING ERRCODE = '55000';
END
$$;
CREATE TRIGGER refuse_changed_build BEFORE UPDATE ON read_model_builds FOR EACH ROW
    WHEN (OLD.sha256 IS NOT NULL AND (OLD.sha256, OLD.tables_sql, OLD.apply_sql, OLD.tables)
          IS DISTINCT FROM (NEW.sha256, NEW.tables_sql, NEW.apply_sql, NEW.tables))
    EXECUTE FUNCTION refuse_changed_build();
"""

DOWNGRADE = """
DROP TRIGGER refuse_changed_build ON read_model_builds;
DROP FUNCTION refuse_changed_build();
REVOKE UPDATE (paused) ON read_model_builds FROM plant_operator;
REVOKE SELECT ON read_model_builds FROM plant_writer;
ALTER TABLE read_model_builds
    DROP COLUMN tables_sql, DROP COLUMN apply_sql, DROP COLUMN sha256, DROP COLUMN paused;
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
