"""`plant projections`: what the builds of read models are, on real ones, and what the check says."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

import pytest

from projections import engine
from projections.engine import PartitionProjector
from projections.install import install
from projections.read_model import READ_MODELS, ReadModel
from projections.session import Session
from runtime.settings import Settings
from streams.errors import ReadModelsChanged
from streams.topics import apply
from tests.conftest import Database
from tests.support.batches import TOPIC, WATERMARKS, batch_of
from tests.support.command_line import operations, plant
from tests.support.load import some_events
from tests.support.made_models import AGENTS, made_model

NEXT = dataclasses.replace(AGENTS, version=2)
FIRST_RECORD_AT = 1_760_000_000
"""The time of the first record of a batch, in seconds since 1970."""
REFUSED = made_model("odd", "a int CHECK (a > 1)", "INSERT INTO __schema__.odd SELECT 1 FROM staged_agent_rated")


def project(database: Database, partition: int, count: int, release: tuple[ReadModel, ...] = READ_MODELS) -> None:
    projector = PartitionProjector(database.writer_url, TOPIC, partition, release)
    try:
        token = projector.acquire(WATERMARKS).token
        projector.project(batch_of(some_events(count), token=token, partition=partition))
    finally:
        projector.close()


def listed(settings: Settings, *options: str) -> list[dict[str, Any]]:
    done = plant(settings, "projections", "list", "--output", "json", *options)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def test_builds_are_listed_with_their_state(database: Database, superuser: Session, settings: Settings) -> None:
    """Live and caught up, filling with its lag, stopped with the reason, and left once readers have gone over."""
    project(database, 0, 20)
    install(database.owner_url, [*READ_MODELS, NEXT, REFUSED])
    project(database, 1, 30, (*READ_MODELS, REFUSED))

    by_key = {f"{row['name']}/{row['version']}": row for row in listed(settings)}
    assert (by_key["agents/1"]["state"], by_key["agents/1"]["lag"]) == ("live", 0)
    assert (by_key["agents/2"]["state"], by_key["agents/2"]["lag"]) == ("filling", 50)
    assert (by_key["odd/1"]["state"], by_key["odd/1"]["lag"]) == ("stopped", 50)
    assert "SQLSTATE 23514" in str(by_key["odd/1"]["last_error"])
    assert by_key["agents/1"]["lag_seconds"] == 0
    ages = {each["partition"]: each.pop("lag_seconds") for each in by_key["agents/2"]["partitions"]}
    since = time.time() - FIRST_RECORD_AT
    assert all(since - 3600 < age <= since for age in ages.values())
    assert by_key["agents/2"]["lag_seconds"] == max(ages.values())
    assert by_key["agents/2"]["partitions"] == [
        {"topic": TOPIC, "partition": 0, "next_offset": 0, "lag": 20, "last_error": None},
        {"topic": TOPIC, "partition": 1, "next_offset": 0, "lag": 30, "last_error": None},
    ]
    rows = listed(settings, "--partitions")
    of_next = [row for row in rows if (row["name"], row["version"]) == ("agents", 2)]
    assert [(row["partition"], row["next_offset"], row["lag"]) for row in of_next] == [(0, 0, 20), (1, 0, 30)]
    shown = plant(settings, "projections", "list").stdout
    assert shown.splitlines()[0].split() == ["name", "version", "state", "lag", "lag", "seconds", "last", "error"]
    assert "filling" in shown

    superuser.script("UPDATE read_model_builds SET live = false", "UPDATE read_model_builds SET live = version = 2")
    states = {(row["name"], row["version"]): row["state"] for row in listed(settings)}
    assert (states["agents", 1], states["agents", 2]) == ("left", "live")


def test_a_build_without_a_log_is_listed(settings: Settings) -> None:
    """Nothing was read so far: it has no partition, and lacks nothing. One that starts paused is paused."""
    rows = listed(settings)
    states = {model.name: "paused" if model.starts_paused else "live" for model in READ_MODELS}
    assert {row["name"]: row["state"] for row in rows} == states
    assert all((row["lag"], row["lag_seconds"], row["partitions"]) == (0, 0, []) for row in rows)


def test_a_changed_fold_fails_the_check(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 3, the model, and what to do; unchanged ones pass."""
    assert plant(settings, "projections", "check").returncode == 0
    done = plant(settings, "projections", "lock")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "Every version is locked already.\n")
    changed = dataclasses.replace(AGENTS, apply_text=AGENTS.apply_text.replace("'retired'", "'gone'"))
    monkeypatch.setattr("projections.read_model.READ_MODELS", (changed,))
    for command in ("check", "lock"):
        done = plant(settings, "projections", command)
        assert done.returncode == 3
        assert "agents: its SQL was changed and its version is still 1" in done.stderr


async def test_a_paused_read_model_is_left_out_until_it_is_resumed(
    database: Database, settings: Settings, superuser: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner goes on without it within seconds, and with it once it is resumed; both are recorded."""
    await apply(settings)
    monkeypatch.setattr(engine, "LOOK_EVERY_SECONDS", 0.0)
    projector = PartitionProjector(database.writer_url, TOPIC, 0, READ_MODELS)
    token = projector.acquire(WATERMARKS).token
    projector.project(batch_of(some_events(20), token=token))

    done = plant(settings, "projections", "pause", "agents", "--reason", "a test")
    assert (done.returncode, done.stderr) == (0, "paused agents\n")
    projector.idle()
    projector.project(batch_of(some_events(20, seed=2), token=token, start=20))
    (agents,) = [row for row in listed(settings) if row["name"] == "agents"]
    assert (agents["state"], agents["lag"]) == ("paused", 20)
    assert superuser.query("SELECT count(*) AS n FROM event_stream") == [(40,)]
    again = plant(settings, "projections", "pause", "agents/1")
    assert again.stderr == "agents/1 is paused; nothing to do\n"

    assert plant(settings, "projections", "resume", "agents/1").stderr == "resumed agents/1\n"
    with pytest.raises(ReadModelsChanged, match="agents/1 is to be fed"):
        projector.idle()
    projector.acquire(WATERMARKS)
    projector.close()
    (agents,) = [row for row in listed(settings) if row["name"] == "agents"]
    assert (agents["state"], agents["lag"]) == ("live", 0)
    recorded = await operations(settings, "agents")
    assert {("projections.pause", "agents"), ("projections.resume", "agents/1")} <= {
        (each.action, each.target) for each in recorded
    }


def test_a_build_that_is_retired_is_neither_paused_nor_resumed(
    database: Database, superuser: Session, settings: Settings
) -> None:
    """Its tables are gone. What it is does not count where others of its name are meant."""
    install(database.owner_url, [*READ_MODELS, NEXT])
    superuser.script(
        "UPDATE read_model_builds SET live = false, phase = 'retired' WHERE projection = 'agents' AND version = 1",
        "UPDATE read_model_builds SET paused = true WHERE projection = 'agents' AND version = 2",
    )
    for verb in ("pause", "resume"):
        done = plant(settings, "projections", verb, "agents/1")
        assert (done.returncode, "There is no build agents/1." in done.stderr) == (2, True), done.stderr
    done = plant(settings, "projections", "pause", "agents")
    assert (done.returncode, done.stderr) == (0, "agents is paused; nothing to do\n")


@pytest.mark.parametrize("build", ["nobody", "agents/9", "agents/", "agents/x"])
def test_a_build_that_there_is_not_is_named(settings: Settings, build: str) -> None:
    """Nothing is recorded, and the listing is named."""
    done = plant(settings, "projections", "pause", build)
    assert done.returncode == 2
    assert f"There is no build {build}." in done.stderr
    assert "plant projections list" in done.stderr
