"""The fence knows the release of its worker: one of before parking would apply events of parked entities.

A running worker of before stops with WorkerOutdated at its next batch, and writes nothing.
"""

from database.migrations.script import run_script

revision = "026"
down_revision = "025"
branch_labels = None
depends_on = None

# As in 019, here with the revision that a worker knows, or without it.
LOCK_PARTITION = """
CREATE OR REPLACE FUNCTION lock_partition(
    consumer text, topic text, partition integer, token bigint, next_offset bigint__parameter__
) RETURNS void LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    known tid := nullif(current_setting('plant.checkpoint', true), '')::tid;
    recorded bigint;
BEGIN__check__
    PERFORM FROM partition_owners AS o
    WHERE o.consumer = $1 AND o.topic = $2 AND o.partition = $3 AND o.token = $4 FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the token % of %/% is not current for the consumer %', token, topic, partition, consumer
            USING ERRCODE = 'PL001';
    END IF;
    IF known >= '(16,0)' THEN
        SELECT c.next_offset INTO recorded FROM checkpoints AS c
        WHERE c.ctid = known AND c.consumer = $1 AND c.topic = $2 AND c.partition = $3;
    END IF;
    IF recorded IS NULL THEN
        SELECT c.next_offset INTO recorded FROM checkpoints AS c
        WHERE c.consumer = $1 AND c.topic = $2 AND c.partition = $3;
    END IF;
    IF recorded IS DISTINCT FROM $5 THEN
        RAISE EXCEPTION 'the checkpoint of the consumer % in %/% is %, not %', consumer, topic, partition, recorded,
            next_offset USING ERRCODE = 'PL001';
    END IF;
END
$$;
"""
ADD_PARTITION_OWNERS = """
CREATE OR REPLACE FUNCTION add_partition_owners(
    consumer text, topic text, partitions integer, topic_id uuid__parameter__
) RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$__check__
    INSERT INTO partition_owners (consumer, topic, partition, token, worker, backend_pid, backend_started_at, topic_id)
    SELECT $1, $2, number, 1, '', 0, '-infinity', $4 FROM generate_series(0, $3 - 1) AS number
    WHERE NOT EXISTS (SELECT FROM partition_owners AS o WHERE o.consumer = $1 AND o.topic = $2)
    ON CONFLICT DO NOTHING
$$;
"""
REVISION = ", known_revision integer"


def function(text: str, parameter: str = "", check: str = "") -> str:
    """Return the statement that makes a function, with a further parameter that is checked first."""
    return text.replace("__parameter__", parameter).replace("__check__", check and f"\n    {check}")


REFUSE = """
-- The revision of the database that workers must know at least: theirs comes with each batch, and with acquiring.
CREATE FUNCTION refuse_older_worker(known_revision integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF known_revision < 26 THEN
        RAISE EXCEPTION 'this worker is older than the database: stop it, and start one of the version that migrated it'
            USING ERRCODE = 'PL002';
    END IF;
END
$$;
"""
RIGHTS = """
REVOKE EXECUTE ON FUNCTION lock_partition(text, text, integer, bigint, bigint, integer),
    add_partition_owners(text, text, integer, uuid, integer), refuse_older_worker(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION lock_partition(text, text, integer, bigint, bigint, integer),
    add_partition_owners(text, text, integer, uuid, integer), refuse_older_worker(integer) TO plant_writer;

-- What workers of before call.
CREATE OR REPLACE FUNCTION lock_partition(
    consumer text, topic text, partition integer, token bigint, next_offset bigint
) RETURNS void LANGUAGE sql AS $$
    SELECT refuse_older_worker(0)
$$;
CREATE OR REPLACE FUNCTION add_partition_owners(consumer text, topic text, partitions integer, topic_id uuid)
RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT refuse_older_worker(0)
$$;
"""
DROP = """
DROP FUNCTION lock_partition(text, text, integer, bigint, bigint, integer);
DROP FUNCTION add_partition_owners(text, text, integer, uuid, integer);
DROP FUNCTION refuse_older_worker(integer);
"""


def upgrade() -> None:
    lock = function(LOCK_PARTITION, REVISION, "PERFORM refuse_older_worker(known_revision);")
    owners = function(ADD_PARTITION_OWNERS, REVISION, "SELECT refuse_older_worker($5);")
    run_script(REFUSE + lock + owners + RIGHTS)


def downgrade() -> None:
    run_script(function(LOCK_PARTITION) + function(ADD_PARTITION_OWNERS) + DROP)
