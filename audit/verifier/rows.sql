-- The rows of a range of one chain, in order, for the binary COPY that `RangeVerifier` in audit/verifier/chain_range.py reads:
-- the order of the columns is agreed with it. Where audit_log has no row, its offset comes as -1.
SELECT s."offset", s.created_at, coalesce(a."offset", -1), coalesce(a.created_at, s.created_at),
    coalesce(a.previous_hash, decode(repeat('00', 32), 'hex')), coalesce(a.hash, decode(repeat('00', 32), 'hex')),
    s.key, s.value, s.headers, a.event_type, a.entity_type, a.entity_id, s.event_id, s.disposition
FROM (SELECT * FROM event_stream WHERE topic = $1 AND partition = $2 AND "offset" BETWEEN $3 AND $4) AS s
LEFT JOIN (SELECT * FROM audit_log WHERE topic = $1 AND partition = $2 AND "offset" BETWEEN $3 AND $4) AS a
    ON a."offset" = s."offset"
ORDER BY s."offset"
