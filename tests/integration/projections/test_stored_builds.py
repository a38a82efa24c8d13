"""Builds keep the SQL that they were made with: workers run that, and another fold under an old version is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import structlog

from operations.services.worker import require_writer_session
from projections import builds, engine, stored_builds
from projections.engine import PartitionProjector
from projections.errors import BuildMissing, FoldChanged
from projections.install import install
from projections.read_model import READ_MODELS, ReadModel
from projections.session import LogRefused, ProjectionBroken, Session
from runtime.settings import Settings
from streams.errors import ReadModelsChanged
from tests.conftest import Database
from tests.support.batches import WATERMARKS, batch_of
from tests.support.command_line import plant
from tests.support.load import some_events
from tests.support.made_models import AGENTS, available_agents, made_model
from tests.support.projectors import MakeProjector

CHANGED = dataclasses.replace(AGENTS, apply_text=AGENTS.apply_text.replace("'retired'", "'gone'"))
NEXT = dataclasses.replace(AGENTS, version=2)
FOREIGN = available_agents()
"""A model of another release than the worker's."""

FED = {model.key for model in READ_MODELS if not model.starts_paused}

ROWS = "SELECT to_json(a)::text AS row FROM {} AS a ORDER BY agent_id"
STOPPED = "SELECT projection || '/' || version AS key, next_offset, stop_reason FROM model_checkpoints"
SHARING = "SELECT unnest(read_models) AS key FROM checkpoints WHERE partition = 0"
REWRITE = "UPDATE read_model_builds SET apply_sql = apply_sql || ' -- more' WHERE projection = '{}'"


def project(projector: PartitionProjector, count: int, start: int = 0, *, acquire: bool = True) -> None:
    token = projector.acquire(WATERMARKS).token if acquire else projector._require_fence().token
    projector.project(batch_of(some_events(count, seed=start + 1), token=token, start=start))


def sharing(superuser: Session, name: str = "") -> set[str]:
    """The builds that share the checkpoint of partition 0, of one read model if it is named."""
    return {key for (key,) in superuser.query(SHARING) if key.startswith(name)}


def install_live(database: Database, superuser: Session, models: Sequence[ReadModel]) -> None:
    """Install models, and let readers see them: no record is there that they could lack."""
    assert install(database.owner_url, models) == []
    assert superuser.query("SELECT bool_and(live) AS live FROM read_model_builds WHERE version = 1 AND NOT paused") == [
        (True,)
    ]


def rewrite(superuser: Session, name: str, apply_sql: str) -> None:
    """Change a build's SQL past the trigger, as only a superuser can."""
    superuser.script("SET session_replication_role = replica")
    superuser.execute("UPDATE read_model_builds SET apply_sql = $2 WHERE projection = $1", (name, apply_sql))
    superuser.script("SET session_replication_role = origin")


def test_a_changed_fold_under_an_old_version_is_refused(
    database: Database, superuser: Session, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `plant db upgrade`, which changes nothing and names the model."""
    before = superuser.query("SELECT b::text AS build FROM read_model_builds AS b")
    with pytest.raises(FoldChanged, match="The SQL of the read model agents was changed, and its version is still 1"):
        install(database.owner_url, [available_agents(), CHANGED])
    monkeypatch.setattr("projections.install.READ_MODELS", (CHANGED,))
    monkeypatch.setattr("projections.install.install.__defaults__", ((CHANGED,),))
    done = plant(settings, "db", "upgrade")
    assert done.returncode == 3
    assert "The SQL of the read model agents was changed" in done.stderr
    assert superuser.query("SELECT b::text AS build FROM read_model_builds AS b") == before
    assert superuser.query("SELECT to_regnamespace('availabilities_v1') IS NULL AS absent") == [(True,)]


async def test_a_worker_is_refused_at_its_start(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose folds are not those of the builds, and one whose builds nobody has made."""
    monkeypatch.setattr("operations.services.worker.READ_MODELS", (AGENTS,))
    await require_writer_session(settings)
    monkeypatch.setattr("operations.services.worker.READ_MODELS", (CHANGED,))
    with pytest.raises(FoldChanged, match="its version is still 1"):
        await require_writer_session(settings)
    monkeypatch.setattr("operations.services.worker.READ_MODELS", (AGENTS, NEXT))
    with pytest.raises(BuildMissing) as missing:
        await require_writer_session(settings)
    assert (missing.value.why, missing.value.next_step) == (
        "It does not keep the SQL of agents (version 2).", "plant db upgrade",
    )  # fmt: skip


def test_a_build_of_before_is_given_its_sql(
    database: Database, superuser: Session, projector: PartitionProjector
) -> None:
    """By the upgrade; until then a worker does not feed it, and the log goes on."""
    superuser.script(
        "SET session_replication_role = replica",
        "UPDATE read_model_builds SET tables_sql = NULL, apply_sql = NULL, sha256 = NULL",
        "SET session_replication_role = origin",
    )
    project(projector, 10)
    assert superuser.query("SELECT count(*) AS n FROM agents_v1.agents") == [(0,)]
    assert superuser.query("SELECT count(*) AS n FROM event_stream") == [(10,)]
    install(database.owner_url)
    projector.acquire(WATERMARKS)
    assert superuser.query("SELECT count(*) > 0 AS filled FROM agents_v1.agents") == [(True,)]


def test_a_release_with_a_new_version_feeds_the_former_one(
    database: Database, make_projector: MakeProjector, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the SQL that the former build keeps, until readers have left it."""
    monkeypatch.setattr(engine, "LOOK_EVERY_SECONDS", 0.0)
    former = [make_projector(0), make_projector(1)]
    for each in former:
        project(each, 20)
    second = dataclasses.replace(CHANGED, version=2)
    install(database.owner_url, [second])
    monkeypatch.setattr("tests.support.projectors.MODELS", (second,))
    new = make_projector(0)
    project(new, 20, start=20)
    assert sharing(superuser, "agents") == {"agents/1", "agents/2"}
    assert superuser.query(ROWS.format("agents_v1.agents")) == superuser.query(ROWS.format("read_models.agents"))

    make_projector(1).acquire(WATERMARKS)
    assert superuser.query("SELECT version FROM read_model_builds WHERE live") == [(2,)]
    project(new, 20, start=40, acquire=False)
    assert sharing(superuser, "agents") == {"agents/2"}
    project(new, 20, start=60, acquire=False)
    left = "SELECT next_offset FROM model_checkpoints WHERE projection = 'agents' AND version = 1 AND partition = 0"
    assert superuser.query(left) == [(60,)]


def test_a_worker_shows_builds_of_its_own_release_alone(
    database: Database, make_projector: MakeProjector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The former build, which it feeds as well, is whole for a while after readers have left it."""
    project(make_projector(0), 20)
    install(database.owner_url, [NEXT])
    monkeypatch.setattr("tests.support.projectors.MODELS", (NEXT,))
    asked = []
    monkeypatch.setattr(builds, "publish", lambda _, model, **__: asked.append(model.key) or "behind")
    make_projector(0).acquire(WATERMARKS)
    assert asked == [NEXT.key]


def test_a_build_of_another_release_is_fed(
    database: Database, projector: PartitionProjector, superuser: Session
) -> None:
    """Readers see it, so a worker whose release does not bring it runs what it keeps."""
    install_live(database, superuser, [*READ_MODELS, FOREIGN])
    project(projector, 30)
    assert superuser.query("SELECT count(*) > 0 AS filled FROM availabilities_v1.availabilities") == [(True,)]
    assert sharing(superuser) == {*FED, FOREIGN.key}


def test_a_build_that_comes_while_a_worker_runs_is_fed_at_once(
    database: Database, projector: PartitionProjector, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The partition is acquired again, for it; nothing is restarted."""
    monkeypatch.setattr(engine, "LOOK_EVERY_SECONDS", 0.0)
    project(projector, 10)
    projector.idle()
    install(database.owner_url, [FOREIGN])
    superuser.script("UPDATE read_model_builds SET live = true")
    with pytest.raises(ReadModelsChanged, match="availabilities/1 is to be fed"):
        projector.idle()
    projector.acquire(WATERMARKS)
    projector.idle()
    assert superuser.query("SELECT count(*) > 0 AS filled FROM availabilities_v1.availabilities") == [(True,)]


@pytest.mark.parametrize(
    ("statement", "reads"),
    [
        ("INSERT INTO __schema__.odd SELECT 1 FROM staged_agent_hired", "reads staged_agent_hired"),
        (
            "INSERT INTO __schema__.odd SELECT r.mood FROM staged_agent_rated AS r",
            "reads what is not there (column r.mood does not exist)",
        ),
    ],
)
def test_a_build_that_reads_what_a_worker_does_not_know_stops_alone(
    database: Database, projector: PartitionProjector, superuser: Session, statement: str, reads: str,
) -> None:  # fmt: skip
    """Another release made it; the log and the other models go on, and the reason names what is missing."""
    install_live(database, superuser, [*READ_MODELS, made_model("odd", "a int", statement)])
    with structlog.testing.capture_logs() as lines:
        project(projector, 30)
    ((key, offset, reason),) = superuser.query(STOPPED)
    assert (key, offset) == ("odd/1", 0)
    assert reason.startswith("StagedRowsUnknown: ")
    assert reads in reason
    assert sharing(superuser) == FED
    assert superuser.query("SELECT count(*) > 0 AS filled FROM agents_v1.agents") == [(True,)]
    assert [line["model"] for line in lines if line["event"] == "model.stopped"] == ["odd"]


def test_sql_that_the_owner_did_not_store_is_never_run(
    database: Database, projector: PartitionProjector, superuser: Session
) -> None:
    """The hash is compared when it is loaded; the build stops alone, under its name."""
    honest = made_model("odd", "a boolean", "INSERT INTO __schema__.odd SELECT true FROM staged_agent_rated")
    install_live(database, superuser, [*READ_MODELS, honest])
    rewrite(superuser, "odd", honest.apply_text.replace("true", "false"))
    project(projector, 30)
    assert superuser.query("SELECT count(*) AS n FROM odd_v1.odd") == [(0,)]
    ((key, offset, reason),) = superuser.query(STOPPED)
    assert (key, offset, reason.partition(":")[0]) == ("odd/1", 0, "BuildAltered")
    assert superuser.query("SELECT count(*) > 0 AS filled FROM agents_v1.agents") == [(True,)]


def test_a_build_that_was_altered_into_no_statement_stops_alone(
    database: Database, projector: PartitionProjector, superuser: Session
) -> None:
    """Nothing of it is looked at before its hash is."""
    install_live(database, superuser, [*READ_MODELS, FOREIGN])
    rewrite(superuser, FOREIGN.name, "SELECT 1; DROP TABLE x")
    project(projector, 30)
    ((key, _, reason),) = superuser.query(STOPPED)
    assert (key, reason.partition(":")[0]) == ("availabilities/1", "BuildAltered")


def test_a_stored_build_never_changes(database: Database, superuser: Session) -> None:
    """Neither its owner nor a service can change it; who is no owner can't even try."""
    for url, refused in ((database.owner_url, ProjectionBroken), (database.writer_url, LogRefused)):
        session = Session(url)
        try:
            with pytest.raises(refused):
                session.script(REWRITE.format("agents"))
        finally:
            session.close()
    with pytest.raises(ProjectionBroken, match="never changes"):
        superuser.script(REWRITE.format("agents"))


def test_installing_again_stores_nothing_again(database: Database, superuser: Session) -> None:
    """A comment that was changed is no other fold; what was stored first stays."""
    commented = dataclasses.replace(AGENTS, apply_text="-- another comment\n" + AGENTS.apply_text)
    before = superuser.query("SELECT b::text AS build FROM read_model_builds AS b")
    assert install(database.owner_url, [commented]) == []
    assert superuser.query("SELECT b::text AS build FROM read_model_builds AS b") == before
    (loaded,) = [each for each in stored_builds.load_builds(superuser, [AGENTS]) if each.name == "agents"]
    assert (loaded.folds(), loaded.sha256, loaded.altered) == (AGENTS.folds(), AGENTS.sha256, False)
