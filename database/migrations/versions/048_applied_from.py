"""From where on all records of a partition are applied, beside the checkpoint of the log.

Who follows the log need not ask it about each batch then. Running workers go on: a call without the new argument says
nothing of what it passes.
"""

from database.migrations.script import run_script

revision = "048"
down_revision = "047"
branch_labels = None
depends_on = None

# As in 019, here with what else is noted, or without it.
ADVANCE_CHECKPOINT = """
CREATE FUNCTION advance_checkpoint(consumer text, topic text, partition integer, next_offset bigint__parameter__)
RETURNS void LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    known tid := nullif(current_setting('plant.checkpoint', true), '')::tid;
    written tid;
BEGIN
    IF known >= '(16,0)' THEN
        UPDATE checkpoints AS c SET next_offset = $4__noted__
        WHERE c.ctid = known AND c.consumer = $1 AND c.topic = $2 AND c.partition = $3 AND c.next_offset <= $4
        RETURNING c.ctid INTO written;
    END IF;
    IF written IS NULL THEN
        UPDATE checkpoints AS c SET next_offset = $4__noted__
        WHERE c.consumer = $1 AND c.topic = $2 AND c.partition = $3 AND c.next_offset <= $4
        RETURNING c.ctid INTO written;
    END IF;
    IF written IS NULL THEN
        RAISE EXCEPTION 'the consumer % has no checkpoint in %/% that could move to %', consumer, topic, partition,
            next_offset USING ERRCODE = 'PL001';
    END IF;
    PERFORM set_config('plant.checkpoint', written::text, false);
END
$$;
"""
RIGHTS = """
REVOKE EXECUTE ON FUNCTION advance_checkpoint(__signature__) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION advance_checkpoint(__signature__) TO plant_writer;
"""
FORMER_SIGNATURE = "text, text, integer, bigint"
SIGNATURE = f"{FORMER_SIGNATURE}, boolean"
ALL_APPLIED = ", all_applied boolean DEFAULT false"
# The first batch that is applied as a whole begins where the log ended before it.
APPLIED_FROM = ",\n            applied_from = CASE WHEN $5 THEN coalesce(c.applied_from, c.next_offset) ELSE $4 END"


def function(signature: str, parameter: str = "", noted: str = "") -> str:
    """Return the statements that make the function, with a further parameter and what follows from it."""
    made = ADVANCE_CHECKPOINT.replace("__parameter__", parameter).replace("__noted__", noted)
    return made + RIGHTS.replace("__signature__", signature)


UPGRADE = f"""
ALTER TABLE checkpoints ADD COLUMN applied_from bigint CHECK (applied_from >= 0);
DROP FUNCTION advance_checkpoint({FORMER_SIGNATURE});
{function(SIGNATURE, ALL_APPLIED, APPLIED_FROM)}
"""

DOWNGRADE = f"""
DROP FUNCTION advance_checkpoint({SIGNATURE});
ALTER TABLE checkpoints DROP COLUMN applied_from;
{function(FORMER_SIGNATURE)}
"""


def upgrade() -> None:
    run_script(UPGRADE)


def downgrade() -> None:
    run_script(DOWNGRADE)
