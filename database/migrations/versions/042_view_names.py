"""Names of views beside others: a version of another shape is shown next to the one before, under names of its own.

`view_suffix` follows the names of a build's tables in those of its views. Builds of one suffix share views, and readers
see one of them. So two versions are live at once, until readers of the former names have gone.
"""

from database.migrations.script import run_script

revision = "042"
down_revision = "041"
branch_labels = None
depends_on = None

SHOW_BUILD = """
CREATE OR REPLACE FUNCTION show_build(model text, build integer) RETURNS void LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    name text;
    shown text;
BEGIN
    FOREACH name IN ARRAY (SELECT b.tables FROM read_model_builds AS b WHERE b.projection = model AND b.version = build)
    LOOP
        shown := {shown};
        EXECUTE format('CREATE OR REPLACE VIEW read_models.%I WITH (security_invoker = true) AS SELECT * FROM %I.%I',
                       shown, model || '_v' || build, name);
        EXECUTE format('GRANT SELECT ON read_models.%I TO plant_api, plant_auditor', shown);
        IF has_table_privilege('plant_embedder', format('%I.%I', model || '_v' || build, name), 'SELECT') THEN
            EXECUTE format('GRANT SELECT ON read_models.%I TO plant_embedder', shown);
        END IF;
    END LOOP;
    UPDATE read_model_builds AS b SET live = false
    WHERE {shared} = (SELECT {shared_own} FROM read_model_builds AS o
                      WHERE o.projection = model AND o.version = build)
      AND (b.projection, b.version) <> (model, build) AND b.live;
    UPDATE read_model_builds AS b SET live = true, whole_since = NULL
    WHERE b.projection = model AND b.version = build AND (NOT b.live OR b.whole_since IS NOT NULL);
END
$$;
"""

SUFFIXED = SHOW_BUILD.format(
    shown="name || (SELECT b.view_suffix FROM read_model_builds AS b WHERE b.projection = model AND b.version = build)",
    shared="(b.read_model, b.view_suffix)",
    shared_own="o.read_model, o.view_suffix",
)
FORMER = SHOW_BUILD.format(shown="name", shared="b.read_model", shared_own="o.read_model")

UPGRADE = f"""
ALTER TABLE read_model_builds
    ADD COLUMN view_suffix text COLLATE "C" NOT NULL DEFAULT '' CHECK (view_suffix ~ '^(_v[0-9]+)?$');
DROP INDEX read_model_builds_live;
CREATE UNIQUE INDEX read_model_builds_live ON read_model_builds (read_model, view_suffix) WHERE live;
{SUFFIXED}
"""

DOWNGRADE = f"""
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT format('read_models.%I', t || b.view_suffix)
                FROM read_model_builds AS b CROSS JOIN unnest(b.tables) AS t WHERE b.view_suffix <> ''
    LOOP
        EXECUTE 'DROP VIEW IF EXISTS ' || name;
    END LOOP;
END
$$;
UPDATE read_model_builds SET live = false WHERE view_suffix <> '' AND live;
{FORMER}
DROP INDEX read_model_builds_live;
CREATE UNIQUE INDEX read_model_builds_live ON read_model_builds (read_model) WHERE live;
ALTER TABLE read_model_builds DROP COLUMN view_suffix;
"""  # noqa: S608 (constants)


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
