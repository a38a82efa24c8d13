"""The SQL of migrations, without a database."""

from __future__ import annotations

import pytest

from database import migrate
from database.errors import UnknownRevision


def test_sql_of_nothing_is_named() -> None:
    """A range that runs backwards, or is empty, has no statements: printed, it would look like an upgrade."""
    for revision, since in (("006", "009"), ("009", "009"), ("heads", "heads")):
        with pytest.raises(UnknownRevision, match="nothing to print") as caught:
            migrate.sql(revision, since=since)
        assert caught.value.exit_code == 2
    assert "CREATE TABLE" in migrate.sql("006")
