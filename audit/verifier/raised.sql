-- Where chains go over to v2: the first control record of each chain that has the bytes of a switch, by the first five bytes of
-- its value, which name its schema; and the first of them that names another record, which none does. The index on what is
-- not applied leads to them.
SELECT topic, partition, substr(value, 1, 5), min("offset"), min("offset") FILTER (WHERE control_offset IS NOT NULL)
FROM public.log_records
WHERE disposition <> 'applied' AND disposition = 'control' AND key IS NULL AND entity_id IS NULL
    AND octet_length(value) = 22 AND get_byte(value, 0) = 0 AND get_byte(value, 21) = 4
GROUP BY 1, 2, 3
