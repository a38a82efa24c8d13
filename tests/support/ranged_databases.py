"""Databases in which the first ranges of the log are there: tests that write rows alone leave them to be used again."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

from devstack import postgres, sql
from projections.read_model import ReadModel
from tests.support import batches, log_tables
from tests.support.databases import Databases
from tests.support.services import Services


@contextmanager
def copies_with_ranges(stack: Services, template: str, without: Sequence[ReadModel] = ()) -> Iterator[Databases]:
    """Copies of a migrated database with those ranges, and without some of the read models."""
    name = f"plant_template_{secrets.token_hex(4)}"
    postgres.create_database(stack.superuser_url, name, template=template)
    log_tables.make_first_ranges(
        in_database(stack.environ["PLANT_DATABASE_OWNER_URL"], name), batches.TOPIC, batches.PARTITIONS
    )
    if without:
        keys = ", ".join(sql.literal(model.name) for model in without)
        sql.execute(
            in_database(stack.superuser_url, name),
            [
                *(f"DROP SCHEMA {model.schema} CASCADE" for model in without),
                f"DELETE FROM read_model_builds WHERE projection IN ({keys})",
            ],
        )
    made = Databases(stack.superuser_url, name, in_database)
    yield made
    made.close()
    postgres.drop_database(stack.superuser_url, name)


def in_database(url: str, name: str) -> str:
    """Return the address of another database of the same server and role."""
    return urlsplit(url)._replace(path=f"/{name}").geturl()
