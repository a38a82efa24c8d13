-- Every chain with its lowest and highest offset in either table. Loose index scans: one look-up a chain, however long.
-- LIMIT and not min or max, for which Postgres may read a whole chain where it believes that it is short.
WITH RECURSIVE in_stream AS (
    (SELECT topic, partition FROM event_stream ORDER BY topic, partition LIMIT 1)
    UNION ALL
    SELECT n.* FROM in_stream AS c CROSS JOIN LATERAL (SELECT topic, partition FROM event_stream
        WHERE (topic, partition) > (c.topic, c.partition) ORDER BY topic, partition LIMIT 1) AS n
), in_audit AS (
    (SELECT topic, partition FROM audit_log ORDER BY topic, partition LIMIT 1)
    UNION ALL
    SELECT n.* FROM in_audit AS c CROSS JOIN LATERAL (SELECT topic, partition FROM audit_log
        WHERE (topic, partition) > (c.topic, c.partition) ORDER BY topic, partition LIMIT 1) AS n
)
SELECT c.topic, c.partition,
    least((SELECT "offset" FROM event_stream AS e WHERE e.topic = c.topic AND e.partition = c.partition
           ORDER BY "offset" LIMIT 1),
          (SELECT "offset" FROM audit_log AS e WHERE e.topic = c.topic AND e.partition = c.partition
           ORDER BY "offset" LIMIT 1)),
    greatest((SELECT "offset" FROM event_stream AS e WHERE e.topic = c.topic AND e.partition = c.partition
              ORDER BY "offset" DESC LIMIT 1),
             (SELECT "offset" FROM audit_log AS e WHERE e.topic = c.topic AND e.partition = c.partition
              ORDER BY "offset" DESC LIMIT 1))
FROM (SELECT * FROM in_stream UNION SELECT * FROM in_audit) AS c
ORDER BY 1, 2
