"""Migration 019: owners and checkpoints per consumer, what it carries over, and workers of before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from database import migrate
from database.errors import MigrationLocked
from devstack import sql
from projections.session import Session, WorkerOutdated
from tests.conftest import Database
from tests.support import log_rows
from tests.support.schema_shape import shape
from tests.support.services import Services

FORMER = (
    "INSERT INTO partition_owners SELECT 'genesis.events', n, 7 + n, 'host:1', 41 + n, '2026-01-01Z',"
    " gen_random_uuid(), '2026-01-02Z', CASE n WHEN 2 THEN 'stopped' END FROM generate_series(0, 2) AS n",
    """
    INSERT INTO checkpoints (projection, version, topic, partition, next_offset, stop_reason) VALUES
        ('log', 0, 'genesis.events', 0, 90, NULL), ('log', 0, 'genesis.events', 1, 80, NULL),
        ('log', 0, 'genesis.events', 2, 0, NULL), ('log', 0, 'genesis.events-2', 0, 5, NULL),
        ('agents', 1, 'genesis.events', 0, 90, NULL), ('agents', 1, 'genesis.events', 1, 80, NULL),
        ('agents', 1, 'genesis.events', 2, 0, NULL), ('agents', 1, 'genesis.events-2', 0, 5, NULL),
        ('agents', 2, 'genesis.events', 0, 90, NULL), ('agents', 2, 'genesis.events', 1, 30, NULL),
        ('skills', 1, 'genesis.events', 0, 60, 'refused'), ('skills', 1, 'genesis.events', 1, 80, 'refused'),
        ('dead_letters', 0, 'genesis.events', 0, 12, NULL), ('dead_letters', 0, 'genesis.events-2', 0, 3, NULL)
    """,
)
"""Models that have caught up, that lag and that are stopped, one of them where the log is."""

NOW = """
SELECT array_agg(concat_ws(' ', consumer, topic, partition, next_offset, read_models)
                 ORDER BY consumer DESC, topic, partition) FROM checkpoints
"""
LAGGING = """
SELECT array_agg(concat_ws(' ', projection, version, topic, partition, next_offset, stop_reason)
                 ORDER BY projection, version, topic, partition) FROM model_checkpoints
"""
OWNERS = """
SELECT array_agg(concat_ws(' ', {consumer} topic, partition, token, worker, backend_pid, backend_started_at, topic_id,
                           taken_at, stop_reason) ORDER BY topic, partition) FROM partition_owners
"""
BEFORE = """
SELECT array_agg(concat_ws(' ', projection, version, topic, partition, next_offset, stop_reason)
                 ORDER BY projection, version, topic, partition) FROM checkpoints
"""


@pytest.fixture(scope="module")
def former_template(stack: Services, template_database: str) -> Iterator[str]:
    """The name of a database at 018, with rows."""
    with log_rows.migrated_database(stack, template_database) as made:
        assert migrate.downgrade(made.owner_url, "018") == ("018",)
        sql.execute(made.owner_url, FORMER)
        yield made.name


@pytest.fixture
def former(stack: Services, former_template: str) -> Iterator[Database]:
    """A copy of it: going down takes longer."""
    with log_rows.migrated_database(stack, former_template) as made:
        yield made


def test_rows_are_carried_over(former: Database) -> None:
    """Each model that is where the log is shares its row, the others keep theirs, and the relay is a consumer."""
    url = former.owner_url
    owners = sql.value(url, OWNERS.format(consumer=""))

    migrate.upgrade(url, "019")

    assert sql.value(url, NOW) == [
        "projector genesis.events 0 90 {agents/1,agents/2}",
        "projector genesis.events 1 80 {agents/1}",
        "projector genesis.events 2 0 {agents/1}",
        "projector genesis.events-2 0 5 {agents/1}",
        "dead_letters genesis.events 0 12 {}",
        "dead_letters genesis.events-2 0 3 {}",
    ]
    assert sql.value(url, LAGGING) == [
        "agents 2 genesis.events 1 30",
        "skills 1 genesis.events 0 60 refused",
        "skills 1 genesis.events 1 80 refused",
    ]
    assert sql.value(url, OWNERS.format(consumer="")) == owners
    assert sql.value(url, "SELECT array_agg(DISTINCT consumer) FROM partition_owners") == ["projector"]


def test_the_view_shows_what_stood_there_before(former: Database) -> None:
    """Readers find the log and every model where they were, whether the model shares the log's row or not."""
    url = former.owner_url
    before = [line for line in sql.value(url, BEFORE) or [] if not line.startswith("dead_letters")]

    migrate.upgrade(url, "019")

    assert sql.value(url, BEFORE.replace("FROM checkpoints", "FROM projection_checkpoints")) == before


def test_it_goes_down_and_up_with_rows_in_it(former: Database) -> None:
    """Down, the rows are those of before; up again, rows, rights and functions are those of the first time."""
    url = former.owner_url
    rows_before, owners_before, shape_before = (
        sql.value(url, BEFORE), sql.value(url, OWNERS.format(consumer="")), shape(url),
    )  # fmt: skip
    migrate.upgrade(url, "019")
    rows, lagging, owners = (sql.value(url, each) for each in (NOW, LAGGING, OWNERS.format(consumer="consumer,")))
    once = shape(url)
    assert once != shape_before

    assert migrate.downgrade(url, "018") == ("018",)
    assert (sql.value(url, BEFORE), sql.value(url, OWNERS.format(consumer=""))) == (rows_before, owners_before)
    assert shape(url) == shape_before

    migrate.upgrade(url, "019")
    assert [sql.value(url, each) for each in (NOW, LAGGING)] == [rows, lagging]
    assert sql.value(url, OWNERS.format(consumer="consumer,")) == owners
    assert shape(url) == once


def test_rows_of_other_consumers_are_left_on_the_way_down(former: Database) -> None:
    """A version that knows no consumers takes none of theirs for the projector's or a model's."""
    url = former.owner_url
    before = sql.value(url, BEFORE), sql.value(url, OWNERS.format(consumer=""))
    migrate.upgrade(url, "019")
    sql.execute(
        url,
        [
            "INSERT INTO checkpoints VALUES ('deliveries', 'genesis.events', 0, 4)",
            "SELECT add_partition_owners('deliveries', 'genesis.events', 3, NULL)",
        ],
    )
    migrate.downgrade(url, "018")
    assert (sql.value(url, BEFORE), sql.value(url, OWNERS.format(consumer=""))) == before


def test_a_batch_that_is_being_written_is_waited_for(former: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner holds the partition's row; the migration gives up in time, and has changed nothing."""
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT_SECONDS", 1)
    rows = sql.value(former.owner_url, BEFORE)
    with contextlib.closing(Session(former.writer_url)) as worker:
        worker.script("BEGIN", "SELECT hold_partition('genesis.events', 0, 7, 90)")
        with pytest.raises(MigrationLocked, match="changed nothing"):
            migrate.upgrade(former.owner_url, "019")
        worker.commit()
    assert sql.value(former.owner_url, BEFORE) == rows
    assert migrate.upgrade(former.owner_url, "019") == ("019",)


@pytest.fixture
def older_worker(former: Database) -> Iterator[Session]:
    """The session of a worker that began before the migration and goes on after it."""
    session = Session(former.writer_url)
    session.script("SELECT hold_partition('genesis.events', 0, 7, 90)")
    migrate.upgrade(former.owner_url, "019")
    yield session
    session.close()


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT hold_partition('genesis.events', 0, 7, 90)",
        """
        INSERT INTO partition_owners (topic, partition, token, worker, backend_pid, backend_started_at, topic_id)
        SELECT 'genesis.events', partition, 1, '', 0, '-infinity', NULL FROM generate_series(0, 2) AS partition
        WHERE NOT EXISTS (SELECT FROM partition_owners WHERE topic = 'genesis.events')
        ON CONFLICT DO NOTHING
        """,
    ],
    ids=["a batch", "acquiring a partition"],
)
def test_a_worker_of_before_is_refused_by_name(former: Database, older_worker: Session, statement: str) -> None:
    """By the first statement of either, before it can end the session of the partition's owner or write a row."""
    before = sql.value(former.owner_url, OWNERS.format(consumer="consumer,"))
    with pytest.raises(WorkerOutdated, match="older than the database: stop it, and start one of the version"):
        older_worker.script(statement)
    assert sql.value(former.owner_url, OWNERS.format(consumer="consumer,")) == before


def test_rows_of_owners_are_made_by_their_function_alone(former: Database) -> None:
    """A writer's own INSERT is taken for an older worker's, with the consumer in it too."""
    migrate.upgrade(former.owner_url, "019")
    insert = "INSERT INTO partition_owners VALUES ('x', 't', 0, 1, '', 0, '-infinity')"
    with contextlib.closing(Session(former.writer_url)) as writer, pytest.raises(WorkerOutdated):
        writer.script(insert)
    sql.execute(former.owner_url, [insert])
