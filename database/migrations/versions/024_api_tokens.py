"""Tokens of readers: only a hash is kept, revocation is final, and an expiry only comes nearer."""

from database.migrations.script import run_script

revision = "024"
down_revision = "023"
branch_labels = None
depends_on = None

UPGRADE = """
CREATE TABLE api_tokens (
    id                   uuid PRIMARY KEY,
    prefix               text COLLATE "C" NOT NULL UNIQUE CHECK (prefix ~ '^[0-9a-f]{12}$'),
    name                 text COLLATE "C" NOT NULL CHECK (name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    secret_hash          bytea NOT NULL CHECK (octet_length(secret_hash) = 32),
    scopes               text[] NOT NULL CHECK (cardinality(scopes) > 0),
    -- Rows that are folded from events belong to this tenant alone, until an event's own tenant is decided.
    governance_agent_id  text COLLATE "C" NOT NULL CHECK (governance_agent_id = 'genesis'),
    created_at           timestamptz NOT NULL DEFAULT now(),
    expires_at           timestamptz,
    revoked_at           timestamptz
);

-- What was revoked stays as it was; what a token may read, and its hash, never change; whoever runs the statement.
CREATE FUNCTION keep_tokens_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.revoked_at IS NOT NULL AND NEW IS DISTINCT FROM OLD THEN
        RAISE EXCEPTION 'token % is revoked, permanently', OLD.prefix
            USING ERRCODE = 'insufficient_privilege', HINT = 'Make another token: plant tokens add';
    END IF;
    IF (NEW.id, NEW.prefix, NEW.name, NEW.secret_hash, NEW.scopes, NEW.governance_agent_id, NEW.created_at)
        IS DISTINCT FROM
        (OLD.id, OLD.prefix, OLD.name, OLD.secret_hash, OLD.scopes, OLD.governance_agent_id, OLD.created_at)
    THEN
        RAISE EXCEPTION 'token % can only end', OLD.prefix
            USING ERRCODE = 'insufficient_privilege', HINT = 'Make another token: plant tokens add';
    END IF;
    IF OLD.expires_at IS NOT NULL AND (NEW.expires_at IS NULL OR NEW.expires_at > OLD.expires_at) THEN
        RAISE EXCEPTION 'token % expires at %, and no later', OLD.prefix, OLD.expires_at
            USING ERRCODE = 'insufficient_privilege', HINT = 'Make another token: plant tokens add';
    END IF;
    RETURN NEW;
END
$$;
CREATE FUNCTION refuse_token_removal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'tokens are not removed: % refused', TG_OP
        USING ERRCODE = 'insufficient_privilege', HINT = 'Revoke the token: plant tokens revoke';
END
$$;
CREATE TRIGGER keep_ended BEFORE UPDATE ON api_tokens FOR EACH ROW EXECUTE FUNCTION keep_tokens_ended();
CREATE TRIGGER keep_rows BEFORE DELETE OR TRUNCATE ON api_tokens
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_token_removal();
REVOKE EXECUTE ON FUNCTION keep_tokens_ended(), refuse_token_removal() FROM PUBLIC;

GRANT SELECT ON api_tokens TO plant_api;
GRANT SELECT, INSERT (id, prefix, name, secret_hash, scopes, governance_agent_id, expires_at),
      UPDATE (expires_at, revoked_at) ON api_tokens TO plant_operator;
"""

DOWNGRADE = """
DROP TABLE api_tokens;
DROP FUNCTION refuse_token_removal();
DROP FUNCTION keep_tokens_ended();
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
