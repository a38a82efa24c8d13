"""Databases in which the first ranges of the log are there: tests that write rows alone leave them to be used again."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

from deliveries.state.retention import DAYS_AHEAD
from devstack import postgres, sql
from projections.read_model import ReadModel
from tests.support import batches, log_tables
from tests.support.databases import Databases
from tests.support.services import Services


@contextmanager
def copies_with_ranges(
    stack: Services, template: str, without: Sequence[ReadModel] = (), *, delivery_days: bool = False
) -> Iterator[Databases]:
    """Copies of a migrated database with those ranges, without some read models, with the days' tables of deliveries.

    What a test would make itself is more than rows, and its database would not be used again.
    """
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
    if delivery_days:
        deliverer_url = in_database(stack.environ["PLANT_DATABASE_DELIVERER_URL"], name)
        sql.execute(deliverer_url, [f"SELECT add_delivery_days({DAYS_AHEAD})"])
    made = Databases(stack.superuser_url, name, in_database)
    yield made
    made.close()
    postgres.drop_database(stack.superuser_url, name)


def in_database(url: str, name: str) -> str:
    """Return the address of another database of the same server and role."""
    return urlsplit(url)._replace(path=f"/{name}").geturl()
