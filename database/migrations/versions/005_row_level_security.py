"""Rights of the services' roles on entities, and the policies that keep governance boundaries apart.

A transaction says whose rows it works on: `set_config('plant.governance_agent_id', …, true)`. Without that nothing is
visible and nothing can be written, not even by the tables' owner.
"""

from database.migrations.script import run_script

revision = "005"
down_revision = "004"
branch_labels = None
depends_on = None

TABLES = (
    "entities",
    "entity_versions",
    "skills",
    "industries",
    "job_roles",
    "teams",
    "agents",
    "job_role_skills",
    "team_members",
    "agent_skills",
)

POLICY = """
ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
ALTER TABLE {table} FORCE ROW LEVEL SECURITY;
CREATE POLICY governance_boundary ON {table}
    USING (governance_agent_id = current_setting('plant.governance_agent_id', true))
    WITH CHECK (governance_agent_id = current_setting('plant.governance_agent_id', true));
"""

# The hashes of an entity are the recorder's alone, and what never changes can't be named in an UPDATE.
GRANTS = """
GRANT SELECT, DELETE ON entities TO plant_writer;
GRANT INSERT (
    id, entity_type, external_id, created_at, updated_at, deleted_at, status, amendment_history, evolution_markers,
    l0_compliance_status, amendment_alignment, drift_detector, append_only, tamper_proof, tags, custom_attributes,
    governance_notes, parent_id, governance_agent_id
), UPDATE (
    external_id, updated_at, deleted_at, status, amendment_history, evolution_markers, l0_compliance_status,
    amendment_alignment, drift_detector, tags, custom_attributes, governance_notes, parent_id
) ON entities TO plant_writer;
GRANT SELECT, INSERT, DELETE
    ON skills, industries, job_roles, teams, agents, job_role_skills, team_members, agent_skills TO plant_writer;
GRANT UPDATE (name, description, category, embedding) ON skills TO plant_writer;
GRANT UPDATE (name, description, embedding) ON industries TO plant_writer;
GRANT UPDATE (name, description, seniority, industry_id) ON job_roles TO plant_writer;
GRANT UPDATE (name, description, job_role_id, industry_id) ON teams TO plant_writer;
GRANT UPDATE (name, job_role_id, team_id, industry_id, available) ON agents TO plant_writer;
GRANT SELECT ON entity_versions TO plant_writer, plant_api, plant_auditor;
GRANT SELECT ON entities, skills, industries, job_roles, teams, agents, job_role_skills, team_members, agent_skills
    TO plant_api;
-- It computes what a caller could compute, as the caller; but only services have a use for it.
REVOKE EXECUTE ON FUNCTION entity_state(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION entity_state(uuid) TO plant_writer, plant_api;
-- These run as the owner. Who may execute one can make it the trigger of a table of one's own, with rows of one's own.
REVOKE EXECUTE ON FUNCTION record_entity_version() FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION touch_entities() FROM PUBLIC;
-- A database that comes from before Postgres 15 lets everybody put functions and tables beside ours.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
"""

DOWNGRADE_POLICY = """
DROP POLICY governance_boundary ON {table};
ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY;
ALTER TABLE {table} DISABLE ROW LEVEL SECURITY;
REVOKE ALL ON {table} FROM plant_writer, plant_api, plant_auditor;
"""

DOWNGRADE = """
REVOKE EXECUTE ON FUNCTION entity_state(uuid) FROM plant_writer, plant_api;
GRANT EXECUTE ON FUNCTION entity_state(uuid) TO PUBLIC;
GRANT EXECUTE ON FUNCTION record_entity_version() TO PUBLIC;
GRANT EXECUTE ON FUNCTION touch_entities() TO PUBLIC;
"""


def upgrade() -> None:
    run_script("".join(POLICY.format(table=table) for table in TABLES) + GRANTS)


def downgrade() -> None:
    run_script("".join(DOWNGRADE_POLICY.format(table=table) for table in TABLES) + DOWNGRADE)
