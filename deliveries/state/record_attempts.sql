-- Record the staged attempts of one round, which has no delivery twice. A copy of a record changes nothing; nor does a
-- late one of a former owner change its delivery, whose state is that of the last owner's last record.
WITH recorded AS (
    INSERT INTO webhook_attempts (occurred_at, delivery_id, attempted_at, hop, token, attempt, stream, outcome, state,
                                  duration_us, status_code, error_class, why, next_attempt_at, request, answer)
    SELECT occurred_at, delivery_id, attempted_at, hop, token, attempt, stream, outcome, state,
           duration_us, status_code, error_class, why, next_attempt_at, request, answer
    FROM staged_attempts WHERE round = :round
    ON CONFLICT DO NOTHING RETURNING delivery_id
)
INSERT INTO webhook_deliveries AS d (
    occurred_at, id, endpoint_id, event_id, type, entity_id, source_partition, source_offset, source_rank, stream, state,
    state_at, attempts, hop, token, redriven, first_attempted_at, last_attempted_at, next_attempt_at, status_code, error_class, why
)
SELECT s.occurred_at, s.delivery_id, s.endpoint_id, s.event_id, s.type, s.entity_id, s.source_partition,
       s.source_offset, s.source_rank, s.stream, s.state, s.attempted_at,
       CASE WHEN s.outcome IN ('postponed', 'cancelled') THEN s.attempt - 1 ELSE s.attempt END, s.hop, s.token,
       CASE WHEN s.stream = 'redrive' THEN 1 ELSE 0 END,
       CASE WHEN s.outcome NOT IN ('postponed', 'cancelled') THEN s.attempted_at END,
       CASE WHEN s.outcome NOT IN ('postponed', 'cancelled') THEN s.attempted_at END,
       s.next_attempt_at, s.status_code, s.error_class, s.why
FROM staged_attempts AS s JOIN recorded USING (delivery_id) WHERE s.round = :round
ON CONFLICT (id, occurred_at) DO UPDATE SET
    source_partition = excluded.source_partition,
    source_offset = excluded.source_offset,
    source_rank = excluded.source_rank,
    stream = excluded.stream,
    state = excluded.state,
    state_at = excluded.state_at,
    attempts = excluded.attempts,
    hop = excluded.hop,
    token = excluded.token,
    -- A delivery that did not wait begins again, unless another owner repeats what was its last attempt.
    redriven = d.redriven + CASE
        WHEN d.state <> 'waiting'
            AND (excluded.token = d.token OR (excluded.stream, excluded.hop) <> (d.stream, d.hop)) THEN 1
        ELSE 0
    END,
    first_attempted_at = coalesce(d.first_attempted_at, excluded.first_attempted_at),
    last_attempted_at = coalesce(excluded.last_attempted_at, d.last_attempted_at),
    next_attempt_at = excluded.next_attempt_at,
    -- What only puts it off or gives it up leaves the answer of the last attempt.
    status_code = CASE WHEN excluded.last_attempted_at IS NULL THEN d.status_code ELSE excluded.status_code END,
    error_class = CASE WHEN excluded.last_attempted_at IS NULL THEN d.error_class ELSE excluded.error_class END,
    why = excluded.why
WHERE excluded.token >= d.token
