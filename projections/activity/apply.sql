-- Fold a batch of staged events into `activity`. Counts are added up, so the outcome is the same however the sequence is
-- cut into batches. Rows are written sorted by primary key.
INSERT INTO __schema__.activity AS counted (hour, event_type, partition, events)
SELECT date_bin('1 hour', occurred_at, '2000-01-01 00:00:00+00'), event_type COLLATE "C", partition, count(*)
FROM staged_events
GROUP BY 1, 2, 3
ORDER BY 1, 2, 3
ON CONFLICT (hour, event_type, partition) DO UPDATE SET events = counted.events + excluded.events
