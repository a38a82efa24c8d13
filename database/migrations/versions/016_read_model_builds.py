"""Which build of a read model its views show, and moving them to another build that has caught up with the log."""

from database.migrations.script import run_script

revision = "016"
down_revision = "015"
branch_labels = None
depends_on = None

UPGRADE = """
CREATE TABLE read_model_builds (
    projection  text COLLATE "C" NOT NULL,
    version     integer NOT NULL CHECK (version >= 0),
    tables      text[] NOT NULL,
    live        boolean NOT NULL DEFAULT false,
    whole_since xid8,
    PRIMARY KEY (projection, version)
);
CREATE UNIQUE INDEX read_model_builds_live ON read_model_builds (projection) WHERE live;

-- Builds that views show already: a build's schema is called after it.
INSERT INTO read_model_builds (projection, version, tables, live)
SELECT part[1], part[2]::integer, array_agg(DISTINCT relname::text), true
FROM (
    SELECT regexp_match(n.nspname, '^(.+)_v([0-9]+)$') AS part, t.relname
    FROM pg_class AS v
    JOIN pg_rewrite AS r ON r.ev_class = v.oid
    JOIN pg_depend AS d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
        AND d.refclassid = 'pg_class'::regclass
    JOIN pg_class AS t ON t.oid = d.refobjid AND t.relkind = 'r'
    JOIN pg_namespace AS n ON n.oid = t.relnamespace
    WHERE v.relnamespace = to_regnamespace('read_models') AND v.relkind = 'v'
) AS shown
WHERE part IS NOT NULL GROUP BY part;

-- Make the views of a build, or bring them up to date.
CREATE FUNCTION show_build(model text, build integer) RETURNS void LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY (SELECT b.tables FROM read_model_builds AS b WHERE b.projection = model AND b.version = build)
    LOOP
        EXECUTE format('CREATE OR REPLACE VIEW read_models.%I WITH (security_invoker = true) AS SELECT * FROM %I.%I',
                       name, model || '_v' || build, name);
        EXECUTE format('GRANT SELECT ON read_models.%I TO plant_api, plant_auditor', name);
    END LOOP;
    UPDATE read_model_builds AS b SET live = false WHERE b.projection = model AND b.version <> build AND b.live;
    UPDATE read_model_builds AS b SET live = true, whole_since = NULL
    WHERE b.projection = model AND b.version = build AND (NOT b.live OR b.whole_since IS NOT NULL);
END
$$;

-- Whether a build lacks records of the log, on any partition.
CREATE FUNCTION build_is_behind(model text, build integer) RETURNS boolean LANGUAGE sql
SET search_path = public, pg_temp AS $$
    SELECT EXISTS (
        SELECT FROM checkpoints AS l
        LEFT JOIN checkpoints AS c
            ON c.projection = model AND c.version = build AND c.topic = l.topic AND c.partition = l.partition
        WHERE l.projection = 'log' AND l.version = 0 AND l.next_offset <> coalesce(c.next_offset, 0)
    )
$$;

-- Workers may move the views, and only to a build that has every record of the log. Returns 'live' when readers see it,
-- 'behind' when it lacks records, 'busy' when readers or another worker are in the way, 'unknown' when nobody made it.
-- Who was behind until now says that it has just caught up: a transaction that began earlier would find the build as it
-- was then, through a view that is new at once, so views wait until all of these have ended.
CREATE FUNCTION publish_build(model text, build integer, caught_up boolean) RETURNS text LANGUAGE plpgsql
SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '50ms' AS $$
DECLARE
    shown boolean;
    since xid8;
BEGIN
    SELECT b.live, b.whole_since INTO shown, since FROM read_model_builds AS b
    WHERE b.projection = model AND b.version = build;
    IF shown IS NULL THEN
        RETURN 'unknown';
    ELSIF shown THEN
        RETURN 'live';
    ELSIF NOT pg_try_advisory_xact_lock(hashtext('plant.projections.publish')) THEN
        RETURN 'busy';
    ELSIF build_is_behind(model, build) THEN
        UPDATE read_model_builds AS b SET whole_since = NULL
        WHERE b.projection = model AND b.version = build AND b.whole_since IS NOT NULL;
        RETURN 'behind';
    END IF;
    -- No worker commits between the second look and the views.
    LOCK TABLE checkpoints IN SHARE ROW EXCLUSIVE MODE;
    IF build_is_behind(model, build) THEN
        RETURN 'behind';
    END IF;
    IF caught_up OR since IS NULL THEN
        since := pg_current_xact_id();
        UPDATE read_model_builds AS b SET whole_since = since WHERE b.projection = model AND b.version = build;
    END IF;
    IF EXISTS (
        SELECT FROM pg_stat_activity AS a
        WHERE a.datname = current_database() AND a.usesysid IS NOT NULL AND a.pid <> pg_backend_pid()
        AND age(a.backend_xmin) >= age(since::xid)
    ) THEN
        RETURN 'busy';
    END IF;
    BEGIN
        PERFORM show_build(model, build);
    EXCEPTION WHEN lock_not_available THEN
        RETURN 'busy';
    END;
    RETURN 'live';
EXCEPTION WHEN lock_not_available THEN
    RETURN 'busy';
END
$$;
REVOKE EXECUTE ON FUNCTION show_build(text, integer), build_is_behind(text, integer),
    publish_build(text, integer, boolean) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION publish_build(text, integer, boolean) TO plant_writer;
GRANT SELECT ON read_model_builds TO plant_api, plant_auditor, plant_operator;
"""

DOWNGRADE = """
DROP FUNCTION publish_build(text, integer, boolean);
DROP FUNCTION build_is_behind(text, integer);
DROP FUNCTION show_build(text, integer);
DROP TABLE read_model_builds;
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
