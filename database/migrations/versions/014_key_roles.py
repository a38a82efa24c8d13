"""Roles of their own for ingress and operators, revocation that is final, and the master key's check value.

Ingress reads keys and policies as plant_ingress, operators change them as plant_operator, and plant_api has no business
with either. `database/roles.sql` makes both roles: an administrator runs it again before this upgrade.
"""

from database.migrations.script import run_script

revision = "014"
down_revision = "013"
branch_labels = None
depends_on = None

UPGRADE = """
-- What was revoked stays as it was, and an expiry only comes nearer; whoever runs the statement, the owner too.
CREATE FUNCTION keep_keys_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.revoked_at IS NOT NULL AND NEW IS DISTINCT FROM OLD THEN
        RAISE EXCEPTION 'key % is revoked, permanently', OLD.id
            USING ERRCODE = 'insufficient_privilege', HINT = 'Make another key: plant keys add';
    END IF;
    IF OLD.expires_at IS NOT NULL AND (NEW.expires_at IS NULL OR NEW.expires_at > OLD.expires_at) THEN
        RAISE EXCEPTION 'key % expires at %, and no later', OLD.id, OLD.expires_at
            USING ERRCODE = 'insufficient_privilege', HINT = 'Make another key: plant keys rotate';
    END IF;
    RETURN NEW;
END
$$;
CREATE FUNCTION refuse_key_removal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'keys are not removed: % refused', TG_OP
        USING ERRCODE = 'insufficient_privilege', HINT = 'Revoke the key: plant keys revoke';
END
$$;
CREATE TRIGGER keep_ended BEFORE UPDATE ON webhook_signatures
    FOR EACH ROW EXECUTE FUNCTION keep_keys_ended();
CREATE TRIGGER keep_rows BEFORE DELETE OR TRUNCATE ON webhook_signatures
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_key_removal();

-- The master keys that secrets were encrypted under, by a value from which none of them can be computed.
CREATE TABLE master_keys (
    check_value  bytea PRIMARY KEY CHECK (octet_length(check_value) = 32),
    created_at   timestamptz NOT NULL DEFAULT now(),
    retired_at   timestamptz
);
CREATE UNIQUE INDEX master_keys_current ON master_keys ((true)) WHERE retired_at IS NULL;

REVOKE ALL ON webhook_signatures, producers FROM plant_api;
GRANT SELECT ON webhook_signatures, producers, master_keys TO plant_ingress;
GRANT SELECT, INSERT, UPDATE (nonce, ciphertext, expires_at, revoked_at) ON webhook_signatures TO plant_operator;
GRANT SELECT, INSERT (name, event_types, rate_per_second, burst, disabled_at, binary_mode),
      UPDATE (event_types, rate_per_second, burst, disabled_at, binary_mode), DELETE ON producers TO plant_operator;
GRANT SELECT, INSERT (check_value), UPDATE (retired_at) ON master_keys TO plant_operator;
-- For `plant status`: how far each projection has come, and who holds which partition.
GRANT SELECT ON checkpoints, partition_owners TO plant_operator;
"""

DOWNGRADE = """
REVOKE ALL ON checkpoints, partition_owners, producers, webhook_signatures FROM plant_operator;
REVOKE ALL ON producers, webhook_signatures FROM plant_ingress;
GRANT SELECT, INSERT, UPDATE (revoked_at, expires_at) ON webhook_signatures TO plant_api;
GRANT SELECT, INSERT (name, event_types, rate_per_second, burst, disabled_at, binary_mode),
      UPDATE (event_types, rate_per_second, burst, disabled_at, binary_mode) ON producers TO plant_api;
DROP TABLE master_keys;
DROP TRIGGER keep_rows ON webhook_signatures;
DROP TRIGGER keep_ended ON webhook_signatures;
DROP FUNCTION refuse_key_removal();
DROP FUNCTION keep_keys_ended();
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
