"""A schema that evolves in the middle of a batch: records of one type in two versions, the later one not known yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from projections.engine import PartitionProjector
from projections.install import install
from projections.read_model import READ_MODELS
from projections.session import Session
from schemas import codec
from schemas.binary.avro_types import parse
from schemas.binary.writer import compile_writer
from schemas.events import AgentRated, Event
from schemas.registry import Registry, Version, bundled, schema_fingerprint
from streams.errors import SchemaNewer
from tests.conftest import Database
from tests.support.batches import TOPIC, WATERMARKS, Record, batch_of, record
from tests.support.mixed_events import MixedEvents
from tests.support.model_tables import log_rows, model_tables
from tests.support.read_model_folds import FOLDS, Applied

pytestmark = pytest.mark.usefixtures("inline_records_max", "no_activated_registry")

RECORDS = 60


def later_version() -> Version:
    """The next version of AgentRated, with a field that may be absent, in the middle of its record."""
    known = bundled().current(AgentRated)
    first, *others = known.schema["fields"]
    note = {"name": "note", "type": ["null", "string"], "default": None}
    schema = {**known.schema, "fields": [first, note, *others]}
    return Version(max(each.id for each in bundled().versions) + 1, known.subject, 2, schema_fingerprint(schema),
                   schema, known.limits)  # fmt: skip


LATER = later_version()
LATER_PREFIX = codec.WIRE_PREFIX.pack(0, LATER.id)


@pytest.fixture
def no_activated_registry() -> Iterator[None]:
    yield
    codec.activate(None)


@pytest.fixture
def projector(database: Database, superuser: Session) -> Iterator[PartitionProjector]:
    """A projector of every read model."""
    install(database.owner_url)
    superuser.script("SET timezone = 'UTC'", "UPDATE read_model_builds SET paused = false")
    made = PartitionProjector(database.writer_url, TOPIC, 0, READ_MODELS)
    yield made
    made.close()


def know_the_later_version() -> None:
    """Be a worker of the release that brings it."""
    codec.activate(Registry([*bundled().versions, LATER]))


def evolving(events: Sequence[Event]) -> list[Record]:
    """Records of events: those of ratings are in turn of the known version and of the later one."""
    write, records, ratings = compile_writer(parse(LATER.schema)), [], 0
    for event in events:
        ratings += isinstance(event, AgentRated)
        if isinstance(event, AgentRated) and ratings % 2 == 0:
            plain = {name: getattr(event, name) for name in event.__struct_fields__} | {"note": f"né {ratings}"}
            records.append((codec.key(event), LATER_PREFIX + write(plain)))
        else:
            records.append(record(event))
    return records


def assert_applied(superuser: Session, events: Sequence[Event]) -> None:
    """The log holds these events, each applied, and every read model's tables are the oracle's."""
    assert [(row.disposition, row.event_id) for row in log_rows(superuser, TOPIC, 0)] == [
        ("applied", event.event_id) for event in events
    ]
    applied = [Applied(0, offset, event) for offset, event in enumerate(events)]
    for model in READ_MODELS:
        assert model_tables(superuser, model) == FOLDS[model.name](applied), model.name


def test_two_versions_of_a_type_in_one_batch_fold_alike(projector: PartitionProjector, superuser: Session) -> None:
    """A worker that knows both reads them in one batch, whichever stands next to which."""
    events = MixedEvents(seed=3).take(RECORDS)
    records = evolving(events)
    know_the_later_version()
    token = projector.acquire(WATERMARKS).token

    projector.project(batch_of(records, token=token))

    assert_applied(superuser, events)


def test_a_version_of_a_later_release_parts_a_batch(projector: PartitionProjector, superuser: Session) -> None:
    """All before its first record is applied, and nothing of what follows, however often it is tried; a worker of the
    later release goes on from there.
    """
    events = MixedEvents(seed=4).take(RECORDS)
    records = evolving(events)
    first = next(index for index, (_, value) in enumerate(records) if value and value.startswith(LATER_PREFIX))
    assert 0 < first < RECORDS - 10
    for _ in range(2):
        token = projector.acquire(WATERMARKS).token
        with pytest.raises(SchemaNewer) as waiting:
            projector.project(batch_of(records, token=token))
        assert (waiting.value.offset, waiting.value.schema_id) == (first, LATER.id)
        assert_applied(superuser, events[:first])

    know_the_later_version()
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of(records, token=token))

    assert_applied(superuser, events)
