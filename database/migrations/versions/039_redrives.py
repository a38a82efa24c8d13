"""Redrives: an operator's orders to send deliveries again, what they are about, and how far each partition is."""

from database.migrations.script import run_script

revision = "039"
down_revision = "038"
branch_labels = None
depends_on = None

UPGRADE = """
-- One row an order, with what was asked for. Its number is in the records of its deliveries.
CREATE TABLE redrives (
    number           bigint GENERATED ALWAYS AS IDENTITY (MAXVALUE 2147483647) PRIMARY KEY,
    operation_id     uuid NOT NULL UNIQUE,
    kind             text COLLATE "C" NOT NULL CHECK (kind IN ('retry', 'recover', 'replay_missing')),
    selection        jsonb NOT NULL,
    reason           text NOT NULL,
    ordered_by       text NOT NULL,
    ordered_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    rate_per_second  integer NOT NULL CHECK (rate_per_second > 0),
    state            text COLLATE "C" NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'finished', 'stopped')),
    ended_at         timestamptz,
    CHECK ((state = 'running') = (ended_at IS NULL))
);
CREATE INDEX redrives_running ON redrives (number) WHERE state = 'running';

-- The deliveries of an order, fixed as it is given: slots of a partition follow the order of the log. Rows of an order
-- that ended days ago are deleted.
CREATE TABLE redrive_slots (
    number            bigint NOT NULL,
    source_partition  integer NOT NULL CHECK (source_partition >= 0),
    slot              bigint NOT NULL CHECK (slot >= 0),
    source_offset     bigint NOT NULL,
    source_rank       bigint NOT NULL,
    endpoint_id       uuid NOT NULL,
    event_id          uuid NOT NULL,
    delivery_id       uuid NOT NULL,
    occurred_at       timestamptz NOT NULL,
    PRIMARY KEY (number, source_partition, slot),
    FOREIGN KEY (number) REFERENCES redrives (number)
);
CREATE INDEX redrive_slots_delivery ON redrive_slots (delivery_id);

-- Slots below `claimed` may be on Kafka, even if the order is stopped; those below `done` are, but for the `unfound`.
CREATE TABLE redrive_partitions (
    number            bigint NOT NULL,
    source_partition  integer NOT NULL CHECK (source_partition >= 0),
    slots             bigint NOT NULL CHECK (slots > 0),
    claimed           bigint NOT NULL DEFAULT 0 CHECK (claimed <= slots),
    done              bigint NOT NULL DEFAULT 0 CHECK (done BETWEEN 0 AND claimed),
    unfound           bigint NOT NULL DEFAULT 0 CHECK (unfound BETWEEN 0 AND done),
    claimed_at        timestamptz,
    PRIMARY KEY (number, source_partition),
    FOREIGN KEY (number) REFERENCES redrives (number)
) WITH (fillfactor = 50);
CREATE INDEX redrive_partitions_unfinished ON redrive_partitions (source_partition) WHERE done < slots;

GRANT SELECT, INSERT, UPDATE (state, ended_at) ON redrives TO plant_operator;
GRANT SELECT, INSERT, DELETE ON redrive_slots TO plant_operator;
GRANT SELECT, INSERT ON redrive_partitions TO plant_operator;
-- What an endpoint is still given from the log by itself is not missing.
GRANT SELECT ON endpoint_backfills TO plant_operator;
GRANT SELECT, UPDATE (state, ended_at) ON redrives TO plant_writer;
GRANT SELECT ON redrive_slots TO plant_writer;
GRANT SELECT, UPDATE (claimed, done, unfound, claimed_at) ON redrive_partitions TO plant_writer;
-- How far deliverers are: a redrive waits for them, so that live deliveries do not wait behind it.
GRANT SELECT ON delivery_checkpoints TO plant_writer;
GRANT SELECT (number, state, ended_at) ON redrives TO plant_deliverer;
"""

DOWNGRADE = """
REVOKE SELECT ON delivery_checkpoints FROM plant_writer;
REVOKE SELECT ON endpoint_backfills FROM plant_operator;
DROP TABLE redrive_partitions, redrive_slots, redrives;
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
