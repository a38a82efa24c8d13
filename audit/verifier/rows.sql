-- The rows of a range of one table, in order, for the binary COPY that `RangeVerifier` in audit/verifier/chain_range.py reads:
-- the order of the columns is agreed with it. A key that is the entity's id is not stored a second time. The last column is
-- the chain of a row that is of another one than its table: readers without a condition see it, so it is read.
SELECT hash, created_at, "offset", coalesce(key, convert_to(entity_id::text, 'UTF8')), value, headers,
    disposition, event_id, event_type, entity_type, entity_id, control_offset,
    CASE WHEN topic = $1 AND partition = $2 THEN NULL ELSE concat(topic, '/', partition) END
FROM ONLY {table} WHERE "offset" BETWEEN $3 AND $4
ORDER BY "offset"
