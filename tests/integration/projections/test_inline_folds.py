"""How Postgres runs the statements of small batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from projections.inline_folds import InlineFolds, InlineRows
from projections.install import install
from projections.prepared import prepare
from projections.read_model import READ_MODELS, ReadModel
from projections.session import Session
from projections.staging import Staging
from schemas.events import Event
from tests.conftest import Database
from tests.support.batches import batch_of
from tests.support.load import events_of_all_models
from tests.support.made_models import MARKETPLACE, SKILLS

MODELS = [model for model in READ_MODELS if not model.starts_paused]


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    install(database.owner_url)
    made = Session(database.writer_url)
    yield made
    made.close()


def folds_of(folds: InlineFolds, staging: Staging, models: Sequence[ReadModel], events: Sequence[Event]) -> list[str]:
    """The statements for a batch of these events."""
    prepared = prepare(batch_of(events, token=1))
    return folds.statements(models, InlineRows(staging, prepared.events, prepared.staged_offsets, partition=0))


def test_what_is_prepared_is_planned_once(session: Session) -> None:
    """For whatever values and numbers of rows, and planning takes longer than running; other statements choose."""
    staging = Staging(MODELS)
    folds, events = InlineFolds(staging), events_of_all_models(400)
    for _ in range(20):
        session.script("BEGIN", *folds_of(folds, staging, MODELS, [next(events) for _ in range(20)]), "COMMIT")
    plans = session.query("SELECT generic_plans AS kept, custom_plans AS made FROM pg_prepared_statements")
    assert len(plans) == sum(len(model.statements) for model in MODELS)
    assert plans == [(20, 0)] * len(plans)
    assert session.query("SELECT current_setting('plan_cache_mode') AS mode") == [("auto",)]
    assert session.query("SELECT current_setting('enable_seqscan') AS allowed") == [("on",)]


@pytest.mark.parametrize("model", [MARKETPLACE, SKILLS], ids=lambda model: str(model.name))
def test_a_plan_that_is_kept_looks_rows_up_by_their_index(
    database: Database, session: Session, model: ReadModel
) -> None:
    """Though the tables were so small as it was made that Postgres would read them whole: they grow."""
    owner, staging = Session(database.superuser_url), Staging([model])
    folds, events = InlineFolds(staging), list(events_of_all_models(20))
    session.script("BEGIN", *folds_of(folds, staging, [model], events), "COMMIT")
    owner.script(*(f"ANALYZE {model.schema}.{table}" for table in model.tables))
    owner.close()

    statements = folds_of(folds, staging, [model], events)
    session.script("BEGIN", *(each for each in statements if not each.startswith("EXECUTE")))
    plans = [
        "\n".join(line for (line,) in session.query(f"EXPLAIN {each}"))
        for each in statements
        if each.startswith("EXECUTE")
    ]
    session.rollback()

    assert any("Index" in plan and " Scan using " in plan for plan in plans)
    assert not any("Seq Scan" in plan for plan in plans)
