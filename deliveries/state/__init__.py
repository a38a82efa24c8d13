"""What became of each delivery, and of each attempt, in Postgres: recorded, kept for some days, and asked for."""
