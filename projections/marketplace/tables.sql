-- Read model `marketplace`: one row an agent that was ever onboarded, by its last profile. Names of what its ids stand
-- for are in marketplace_catalogue, joined by readers: it is written from other partitions. Pages in the order of names,
-- of an industry or a job role too, come from an index.
CREATE TABLE IF NOT EXISTS __schema__.marketplace_agents (
    agent_id             uuid PRIMARY KEY,
    name                 text COLLATE "C" NOT NULL,
    industry_id          uuid,
    job_role_id          uuid,
    skill_ids            uuid[] NOT NULL,
    status               text COLLATE "C" NOT NULL,
    profile_offset       bigint NOT NULL,
    -- Events carry no tenant: what is folded from them belongs to the first one.
    governance_agent_id  text COLLATE "C" NOT NULL DEFAULT 'genesis'
) WITH (fillfactor = 80);
CREATE INDEX IF NOT EXISTS marketplace_agents_name ON __schema__.marketplace_agents (name, agent_id);
CREATE INDEX IF NOT EXISTS marketplace_agents_industry ON __schema__.marketplace_agents (industry_id, name, agent_id)
    WHERE industry_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS marketplace_agents_job_role ON __schema__.marketplace_agents (job_role_id, name, agent_id)
    WHERE job_role_id IS NOT NULL;

-- Read model `marketplace`: a row for each skill of each agent's last profile. An index on marketplace_agents.skill_ids
-- would serve nobody: under a policy Postgres uses an index for comparisons of single values alone.
CREATE TABLE IF NOT EXISTS __schema__.marketplace_agent_skills (
    skill_id             uuid,
    agent_id             uuid,
    governance_agent_id  text COLLATE "C" NOT NULL DEFAULT 'genesis',
    PRIMARY KEY (skill_id, agent_id)
);

-- Read model `marketplace`: whether an agent takes work, and its ratings as whole numbers; the average is computed by
-- readers. These change often, so they are apart from the profile: their rows are short, and have no further index.
CREATE TABLE IF NOT EXISTS __schema__.marketplace_standings (
    agent_id             uuid PRIMARY KEY,
    available            boolean,
    available_from       timestamptz,
    availability_offset  bigint,
    ratings              bigint NOT NULL,
    rating_sum           bigint NOT NULL,
    governance_agent_id  text COLLATE "C" NOT NULL DEFAULT 'genesis'
) WITH (fillfactor = 60);

-- Read model `marketplace`: all ratings of one partition; readers add them up. A row for all partitions would make them
-- wait for each other.
CREATE TABLE IF NOT EXISTS __schema__.marketplace_totals (
    partition            bigint PRIMARY KEY,
    ratings              bigint NOT NULL,
    rating_sum           bigint NOT NULL,
    governance_agent_id  text COLLATE "C" NOT NULL DEFAULT 'genesis'
) WITH (fillfactor = 20);

-- Read model `marketplace`: the skills, job roles and industries that agents name by id, each by its last event.
CREATE TABLE IF NOT EXISTS __schema__.marketplace_catalogue (
    kind                 text COLLATE "C",
    entity_id            uuid,
    name                 text COLLATE "C" NOT NULL,
    description          text NOT NULL,
    words                text[] COLLATE "C" NOT NULL,
    retired              boolean NOT NULL,
    catalogue_offset     bigint NOT NULL,
    governance_agent_id  text COLLATE "C" NOT NULL DEFAULT 'genesis',
    PRIMARY KEY (kind, entity_id)
);

-- Read model `marketplace`: the index of the text search, a row for each word of each name and description. Words are
-- those of Postgres's full text search, in the configuration `simple`. Its own index, GIN, is not used under a policy.
CREATE TABLE IF NOT EXISTS __schema__.marketplace_words (
    word                 text COLLATE "C",
    kind                 text COLLATE "C",
    entity_id            uuid,
    governance_agent_id  text COLLATE "C" NOT NULL DEFAULT 'genesis',
    PRIMARY KEY (word, kind, entity_id)
);

-- The service that computes embeddings reads the texts of the catalogue, and nothing else.
GRANT USAGE ON SCHEMA __schema__ TO plant_embedder;
GRANT SELECT ON __schema__.marketplace_catalogue TO plant_embedder;
