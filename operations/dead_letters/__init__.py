"""Dead letters for operators: found and shown, and redriven or skipped by control records on their own partitions."""
