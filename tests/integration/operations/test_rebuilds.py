"""`plant projections rebuild`, `verify`, `swap`, `rollback` and `retire`, as operators run them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_asyncio

from projections.install import install
from projections.read_model import ReadModel
from projections.rebuild import pace
from projections.rebuild.fill import Filler
from projections.session import Session
from runtime.settings import Settings
from streams.topics import apply
from tests.conftest import Database
from tests.support.command_line import operations, plant
from tests.support.made_models import reshaped_agents
from tests.support.rebuilding import REBUILT, ProjectedLog, session_of

BUILD = "agents_b1/1"
SHOWN = "SELECT projection FROM read_model_builds WHERE live AND read_model = 'agents'"


@pytest_asyncio.fixture
async def topics(settings: Settings) -> None:
    """The topic of operators' actions is there."""
    await apply(settings)


def done(settings: Settings, *arguments: str) -> list[dict[str, Any]]:
    """Run a command that prints rows, to its good end."""
    ended = plant(settings, "projections", *arguments, "--output", "json")
    assert ended.returncode == 0, ended.stderr
    rows: list[dict[str, Any]] = json.loads(ended.stdout)
    return rows


def says(settings: Settings, *arguments: str) -> str:
    """Run a command that says what it has done, to its good end."""
    ended = plant(settings, "projections", *arguments)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


@pytest.mark.usefixtures("topics")
async def test_a_read_model_is_rebuilt_verified_swapped_taken_back_and_retired(
    settings: Settings, projected_log: ProjectedLog, superuser: Session
) -> None:
    """Each step prints what it did, is refused before its turn, and is recorded with its reason."""
    (planned,) = done(settings, "rebuild", "agents", "--dry-run")
    assert (planned["of"], planned["events"], planned["partitions"]) == ("agents/1", 300, 2)
    assert planned["space_bytes"] > 0
    assert planned["seconds"] is None

    (built,) = done(settings, "rebuild", "agents", "--wait", "0", "--reason", "a test")
    assert (built["build"], built["events"], built["lag"]) == (BUILD, 300, 0)
    (planned,) = done(settings, "rebuild", "agents", "--dry-run")
    assert planned["seconds"] > 0
    (planned,) = done(settings, "rebuild", "agents", "--dry-run", "--max-rate", "1")
    assert planned["seconds"] == 300

    refused = plant(settings, "projections", "swap", "agents")
    assert (refused.returncode, "was not verified with agents/1" in refused.stderr) == (3, True)
    (compared,) = done(settings, "verify", "agents")
    assert (compared["build"], compared["with"], compared["same"]) == (BUILD, "agents/1", True)
    assert compared["rows"] == compared["other_rows"] > 0
    assert "readers see agents_b1/1; agents/1 is fed until it is retired" in says(settings, "swap", "agents")
    assert superuser.query(SHOWN) == [("agents_b1",)]

    projected_log.look()
    projected_log.project(50)
    states = {row["name"]: row["state"] for row in done(settings, "list")}
    assert (states["agents"], states["agents_b1"]) == ("standby", "live")
    assert "readers see agents/1 again" in says(settings, "rollback", "agents")
    assert superuser.query(SHOWN) == [("agents",)]
    assert plant(settings, "projections", "swap", "agents").returncode == 3

    assert "would be retired" in says(settings, "retire", "agents")
    assert superuser.query("SELECT count(*) AS n FROM read_model_builds WHERE phase = 'retired'") == [(0,)]
    projected_log.close()
    assert f"{BUILD} is retired" in says(settings, "retire", "agents", "--execute", "--reason", "it is")
    recorded = [each for target in (BUILD, "agents/1") for each in await operations(settings, target)]
    assert {(each.action, each.target, each.reason) for each in recorded} >= {
        ("projections.rebuild", "agents/1", "a test"),
        ("projections.swap", BUILD, "The rebuild is verified."),
        ("projections.rollback", "agents/1", "Readers are to see what they saw before."),
        ("projections.retire", BUILD, "it is"),
    }


@pytest.mark.usefixtures("topics")
async def test_a_rebuild_that_differs_is_named_and_swapped_with_a_reason_alone(
    settings: Settings, projected_log: ProjectedLog, superuser: Session
) -> None:
    """Exit 3, the rows on stderr; an operator may know better, and says why."""
    done(settings, "rebuild", "agents", "--wait", "0")
    superuser.script("UPDATE agents_b1_v1.agents SET name = 'forged' WHERE agent_id IN (SELECT agent_id"
                     " FROM agents_b1_v1.agents ORDER BY 1 LIMIT 1)")  # fmt: skip
    differs = plant(settings, "projections", "verify", "agents")
    assert differs.returncode == 3
    assert "agents: (00000000-0000-0000-0000-000000000001) is changed in agents_b1/1" in differs.stderr
    assert plant(settings, "projections", "swap", "agents", "--force").returncode == 2
    says(settings, "swap", "agents", "--force", "--reason", "the live one is wrong")
    assert superuser.query(SHOWN) == [("agents_b1",)]


@pytest.mark.usefixtures("topics")
async def test_rows_of_the_live_build_are_repaired(
    settings: Settings, projected_log: ProjectedLog, superuser: Session
) -> None:
    """First a plan, which names rows; then with a reason. What has no rebuild is refused."""
    assert plant(settings, "projections", "repair", "agents").returncode == 2
    done(settings, "rebuild", "agents", "--wait", "0")
    superuser.script("UPDATE agents_v1.agents SET name = 'forged' WHERE agent_id = (SELECT min(agent_id::text)::uuid"
                     " FROM agents_v1.agents)")  # fmt: skip
    planned = plant(settings, "projections", "repair", "agents", "--output", "json")
    (row,) = json.loads(planned.stdout)
    assert (row["build"], row["by"], row["table"]) == ("agents/1", BUILD, "agents")
    assert (row["changed"], row["missing"], row["added"], row["merged"]) == (1, 0, 0, 0)
    assert "agents: (00000000-0000-0000-0000-000000000001) is changed in agents/1" in planned.stderr
    assert plant(settings, "projections", "repair", "agents", "--execute").returncode == 2
    (row,) = done(settings, "repair", "agents", "--execute", "--reason", "it was forged")
    assert row["merged"] == 1
    assert done(settings, "verify", "agents")[0]["same"]
    assert [row["changed"] for row in done(settings, "repair", "agents")] == [0]
    assert {(each.action, each.reason) for each in await operations(settings, "agents/1")} >= {
        ("projections.repair", "it was forged")
    }


@pytest.mark.usefixtures("topics")
async def test_entities_of_the_registry_are_repaired(
    settings: Settings, projected_log: ProjectedLog, superuser: Session
) -> None:
    """Without a rebuild, and not while it is paused; the rate is printed, and the reason is recorded."""
    paused = plant(settings, "projections", "repair", "registry", "--wait", "0")
    assert (paused.returncode, "Readers see no build of registry yet" in paused.stderr) == (2, True)
    superuser.script("UPDATE read_model_builds SET paused = false WHERE projection = 'registry'")
    projected_log.look()
    projected_log.project(100)
    forged = [f"UPDATE {table} SET name = 'forged'" for table in ("skills", "industries", "teams")]
    superuser.script("SET session_replication_role = replica", *forged, "SET session_replication_role = origin")
    planned = plant(settings, "projections", "repair", "registry", "--output", "json")
    (row,) = json.loads(planned.stdout)
    assert row["changed"] > 0
    assert (row["missing"], row["added"], row["merged"], row["events"]) == (0, 0, 0, 500)
    assert row["events_per_second"] > 0
    assert row["compared"] == superuser.query("SELECT count(*) AS n FROM entities")[0][0]
    assert "of genesis is changed in registry/1" in planned.stderr
    (done_row,) = done(settings, "repair", "registry", "--execute", "--reason", "it was forged")
    assert done_row["merged"] == row["changed"]
    assert done(settings, "repair", "registry")[0]["changed"] == 0
    assert {(each.action, each.reason) for each in await operations(settings, "registry/1")} == {
        ("projections.repair", "it was forged")
    }


@pytest.mark.usefixtures("topics")
async def test_a_registry_without_entities_is_not_called_repaired(settings: Settings, superuser: Session) -> None:
    """Nothing was compared, so it is no good news."""
    superuser.script("UPDATE read_model_builds SET paused = false, live = true WHERE projection = 'registry'")
    repaired = plant(settings, "projections", "repair", "registry", "--execute", "--reason", "to be safe")
    assert (repaired.returncode, "The log has no entity" in repaired.stderr) == (3, True), repaired.stderr


@pytest.mark.usefixtures("topics")
async def test_a_rebuild_of_nothing_is_not_verified(settings: Settings, database: Database) -> None:
    """Nothing was compared, so it is no good news; without a rebuild there is nothing to compare with either."""
    assert plant(settings, "projections", "verify", "agents").returncode == 2
    done(settings, "rebuild", "agents", "--wait", "0")
    checked = plant(settings, "projections", "verify", "agents")
    assert checked.returncode == 3
    assert "Neither agents/1 nor agents_b1/1 has a row." in checked.stderr


@pytest.mark.usefixtures("topics")
async def test_an_interrupted_rebuild_goes_on_where_it_was(
    settings: Settings, projected_log: ProjectedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C says how far it is and how to go on; off a terminal progress is JSON lines."""
    monkeypatch.setattr(pace, "CHUNK_RECORDS", 3)
    run = Filler.run

    def interrupted(filler: Filler, session: Session) -> None:
        monkeypatch.setattr(Filler, "run", run)
        filler._jobs = 1
        advance, chunks = filler._advance, [0]

        def stop_at_the_third(model: ReadModel, count: int) -> None:
            advance(model, count)
            chunks[0] += 1
            if chunks[0] == 3:
                raise KeyboardInterrupt

        filler._advance = stop_at_the_third
        run(filler, session)

    monkeypatch.setattr(Filler, "run", interrupted)
    stopped = plant(settings, "projections", "rebuild", "agents", "--wait", "0")
    assert stopped.returncode == 130
    assert "agents_b1/1 has " in stopped.stderr
    ended = plant(settings, "projections", "rebuild", "agents", "--wait", "0", "--output", "json")
    assert ended.returncode == 0
    (built,) = json.loads(ended.stdout)
    assert built["build"] == BUILD
    assert 0 < built["events"] < 300
    first, *lines = ended.stderr.splitlines()
    assert first == f"going on with {BUILD}"
    assert json.loads(lines[-1])["done"] == json.loads(lines[-1])["total"] == built["events"]
    (compared,) = done(settings, "verify", "agents")
    assert compared["same"]


@pytest.mark.usefixtures("topics")
async def test_all_read_models_are_rebuilt_with_one_command(
    settings: Settings, projected_log: ProjectedLog, database: Database
) -> None:
    """All that can be, in one pass; where another operator has one of them, nothing is begun."""
    assert plant(settings, "projections", "rebuild").returncode == 2
    assert plant(settings, "projections", "rebuild", "agents", "--all").returncode == 2
    assert plant(settings, "projections", "rebuild", "agents", "registry").returncode == 2
    with session_of(database.owner_url) as first:
        first.script("SELECT pg_advisory_lock(hashtextextended('plant.rebuild.skills', 0))")
        assert plant(settings, "projections", "rebuild", "--all").returncode == 3
    built = done(settings, "rebuild", "--all", "--wait", "0")
    assert [row["build"] for row in built] == [
        f"{model.name}_b{number}/{model.version}" for number, model in enumerate(REBUILT, 1)
    ]
    assert {(row["events"], row["lag"]) for row in built} == {(300, 0)}
    assert [row["events"] for row in done(settings, "rebuild", "agents", "skills", "--dry-run")] == [300, 300]


@pytest.mark.usefixtures("topics")
async def test_a_version_of_another_shape_is_rebuilt_and_shown_beside_the_former_one(
    settings: Settings, projected_log: ProjectedLog, database: Database
) -> None:
    """It is named with its version until readers see it; it replaces nothing, and the former can be retired then."""
    install(database.owner_url, [reshaped_agents()])
    (planned,) = done(settings, "rebuild", "agents/2", "--dry-run")
    assert (planned["of"], planned["space_bytes"]) == ("agents/2", 0)
    (built,) = done(settings, "rebuild", "agents/2", "--wait", "0")
    assert built["build"] == "agents_b1/2"
    assert {row["state"] for row in done(settings, "list") if row["name"] == "agents"} == {"live", "paused"}
    assert plant(settings, "projections", "verify", "agents/2").returncode == 2
    refused = plant(settings, "projections", "swap", "agents")
    assert (refused.returncode, "There is no build of agents beside" in refused.stderr) == (2, True)
    assert plant(settings, "projections", "retire", "agents/1", "--execute").returncode == 2
    assert "readers see agents_b1/2 as read_models.agents_v2" in says(settings, "swap", "agents/2")
    states = {(row["name"], row["version"]): row["state"] for row in done(settings, "list")}
    assert (states["agents", 1], states["agents_b1", 2]) == ("live", "live")
    assert "its views and tables dropped" in says(settings, "retire", "agents/1")
    projected_log.close()
    assert "agents/1 is retired" in says(settings, "retire", "agents/1", "--execute")
    assert ("agents", 1) not in {(row["name"], row["version"]) for row in done(settings, "list")}


@pytest.mark.usefixtures("topics")
async def test_a_read_model_is_made_as_of_a_time(settings: Settings, projected_log: ProjectedLog) -> None:
    """For looking at, in a schema that is printed; it can't be swapped, and is retired. The time is in the reason. A
    topic without the records is refused as source of the next one.
    """
    past = ("agents", "--as-of", "2025-10-09T08:53:20.099Z")
    assert plant(settings, "projections", "rebuild", "agents", "--as-of", "9999-01-01T00:00Z").returncode == 2
    (planned,) = done(settings, "rebuild", *past, "--dry-run")
    assert planned["events"] == 200
    (built,) = done(settings, "rebuild", *past, "--reason", "to look")
    assert (built["build"], built["events"], built["schema"]) == (BUILD, 200, "agents_b1_v1")
    assert {row["name"]: row["state"] for row in done(settings, "list")}["agents_b1"] == "past"
    refused = plant(settings, "projections", "swap", "agents", "--force", "--reason", "why not")
    assert (refused.returncode, f"{BUILD} is the log as of" in refused.stderr) == (2, True)
    assert f"{BUILD} is retired" in says(settings, "retire", "agents", "--execute")
    refused = plant(settings, "projections", "rebuild", "agents", "--source", "topic", "--wait", "0")
    assert (refused.returncode, "can't be the source of a rebuild" in refused.stderr) == (3, True)
    (built,) = done(settings, "rebuild", "agents", "--source", "log", "--wait", "0")
    assert (built["build"], built["events"]) == ("agents_b2/1", 300)
    assert "to look [as of 2025-10-09T08:53:20.099000+00:00]" in {
        each.reason for each in await operations(settings, "agents/1")
    }


@pytest.mark.usefixtures("topics")
async def test_a_second_operator_learns_who_rebuilds(
    settings: Settings, projected_log: ProjectedLog, database: Database
) -> None:
    """Exit 3, with the name of the first; nothing is recorded."""
    before = await operations(settings, "agents/1")
    with session_of(database.owner_url) as first:
        first.script("SELECT pg_advisory_lock(hashtextextended('plant.rebuild.agents', 0))")
        refused = plant(settings, "projections", "rebuild", "agents")
        assert refused.returncode == 3
        assert "The read model agents is being rebuilt." in refused.stderr
    assert await operations(settings, "agents/1") == before
