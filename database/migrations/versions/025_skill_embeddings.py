"""Embeddings of the skills that the marketplace knows, and the role of the service that computes them.

They are no part of a read model's build: a fold never computes one, and a new build has them at once. `plant_embedder`
reads the texts of the catalogue and writes here, nothing else. `database/roles.sql` makes the role: an administrator
runs it again before this upgrade.
"""

from database.migrations.script import run_script

revision = "025"
down_revision = "024"
branch_labels = None
depends_on = None

UPGRADE = """
CREATE TABLE skill_embeddings (
    skill_id             uuid NOT NULL,
    governance_agent_id  text COLLATE "C" NOT NULL DEFAULT 'genesis'
                         CHECK (char_length(governance_agent_id) BETWEEN 1 AND 200),
    -- Name and version of the model: vectors of two models can't be compared.
    model                text COLLATE "C" NOT NULL CHECK (char_length(model) BETWEEN 1 AND 200),
    -- Of the text that was embedded, which shows whether the catalogue says something else by now.
    text_sha256          bytea NOT NULL CHECK (octet_length(text_sha256) = 32),
    embedding            vector(384) NOT NULL,
    embedded_at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (governance_agent_id, skill_id)
);
CREATE INDEX skill_embeddings_nearest ON skill_embeddings USING hnsw (embedding vector_cosine_ops);
ALTER TABLE skill_embeddings ENABLE ROW LEVEL SECURITY;
ALTER TABLE skill_embeddings FORCE ROW LEVEL SECURITY;
CREATE POLICY governance_boundary ON skill_embeddings
    USING (governance_agent_id = (SELECT nullif(current_setting('plant.governance_agent_id', true), '')))
    WITH CHECK (governance_agent_id = (SELECT nullif(current_setting('plant.governance_agent_id', true), '')));
GRANT SELECT, INSERT, UPDATE (model, text_sha256, embedding, embedded_at) ON skill_embeddings TO plant_embedder;
GRANT SELECT ON skill_embeddings TO plant_api;

-- As in 016, and the view can be read by the service of embeddings where its table can.
CREATE OR REPLACE FUNCTION show_build(model text, build integer) RETURNS void LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY (SELECT b.tables FROM read_model_builds AS b WHERE b.projection = model AND b.version = build)
    LOOP
        EXECUTE format('CREATE OR REPLACE VIEW read_models.%I WITH (security_invoker = true) AS SELECT * FROM %I.%I',
                       name, model || '_v' || build, name);
        EXECUTE format('GRANT SELECT ON read_models.%I TO plant_api, plant_auditor', name);
        IF has_table_privilege('plant_embedder', format('%I.%I', model || '_v' || build, name), 'SELECT') THEN
            EXECUTE format('GRANT SELECT ON read_models.%I TO plant_embedder', name);
        END IF;
    END LOOP;
    UPDATE read_model_builds AS b SET live = false WHERE b.projection = model AND b.version <> build AND b.live;
    UPDATE read_model_builds AS b SET live = true, whole_since = NULL
    WHERE b.projection = model AND b.version = build AND (NOT b.live OR b.whole_since IS NOT NULL);
END
$$;
"""

DOWNGRADE = """
CREATE OR REPLACE FUNCTION show_build(model text, build integer) RETURNS void LANGUAGE plpgsql
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
DROP TABLE skill_embeddings;
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
