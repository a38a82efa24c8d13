"""Producers and what each may send; public keys of `v1a` signatures beside the secrets of `v1`.

A process of before this migration reads `v1` rows only, and these are as they were.
"""

from database.migrations.script import run_script

revision = "009"
down_revision = "008"
branch_labels = None
depends_on = None

UPGRADE = """
-- A producer without a row may send every type, at the rate of the settings. Null means the same, column by column.
CREATE TABLE producers (
    name             text PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    event_types      text[] CHECK (cardinality(event_types) BETWEEN 1 AND 100
                                   AND array_position(event_types, NULL) IS NULL),
    rate_per_second  double precision CHECK (rate_per_second > 0 AND rate_per_second <= 1e9),
    burst            integer CHECK (burst >= 1),
    created_at       timestamptz NOT NULL DEFAULT now(),
    disabled_at      timestamptz
);

-- v1 has a secret, encrypted; v1a has the public key alone. A public key belongs to one producer, and once revoked it
-- does not come back as another row.
ALTER TABLE webhook_signatures
    ADD COLUMN public_key bytea UNIQUE CHECK (octet_length(public_key) = 32),
    ALTER COLUMN nonce DROP NOT NULL,
    ALTER COLUMN ciphertext DROP NOT NULL,
    ADD CONSTRAINT webhook_signatures_material CHECK (
        CASE scheme WHEN 'v1' THEN nonce IS NOT NULL AND ciphertext IS NOT NULL AND public_key IS NULL
                    ELSE nonce IS NULL AND ciphertext IS NULL AND public_key IS NOT NULL END);

GRANT SELECT, INSERT (name, event_types, rate_per_second, burst, disabled_at),
      UPDATE (event_types, rate_per_second, burst, disabled_at) ON producers TO plant_api;
"""

# A v1a key can't be kept without its public key.
DOWNGRADE = """
DELETE FROM webhook_signatures WHERE scheme = 'v1a';
ALTER TABLE webhook_signatures
    DROP CONSTRAINT webhook_signatures_material,
    DROP COLUMN public_key,
    ALTER COLUMN nonce SET NOT NULL,
    ALTER COLUMN ciphertext SET NOT NULL;
DROP TABLE producers;
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
