"""From batches to Postgres: the engine, checkpoints, staging, and one folder for each read model."""

# First of all: the database driver imports polars too, and the number of threads is read at the first import.
import schemas.polars_import as _columns  # noqa: F401
