"""`plant deliveries retry` and `recover`: what they plan, what they order, and the orders that there are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import msgspec
import pytest

from deliveries.redrive.missing_deliveries import MissingDelivery, MissingSearch
from deliveries.redrive.orders import Redrives
from deliveries.redrive.redrive_plan import RedrivePlan
from deliveries.redrive.selection import RedriveSelection
from deliveries.state.delivery_rows import DeliveryFilter
from devstack import sql
from operations.cli import redrive_orders
from operations.cli.redrive_options import Ordering
from runtime.settings import Settings
from schemas.delivery_records import DeliveryAttempted
from streams.topics import apply
from tests.conftest import Database
from tests.support.command_line import operations, plant
from tests.support.delivering import change_state
from tests.support.made_attempts import BEGAN_AT, ENDPOINT, attempted
from tests.support.recorded_attempts import ADD_ENDPOINT, OTHER_ENDPOINT, record
from tests.support.redriving import open_redrives, redrive_order

DEAD: Final = {"outcome": "failed", "state": "dead", "status_code": 503, "attempt": 6, "hop": 5}
CANCELLED: Final = {"outcome": "cancelled", "state": "cancelled", "status_code": None}
RETRY: Final = f"plant deliveries retry --endpoint {ENDPOINT}"
EARLIER: Final = BEGAN_AT - timedelta(days=2)
RECORDS: Final = (
    attempted(1),
    attempted(2, **DEAD),
    attempted(3, **DEAD, type="genesis.skill.validated"),
    attempted(4, **CANCELLED),
    attempted(5, outcome="failed", state="waiting", status_code=503),
    attempted(6, **DEAD, endpoint_id=OTHER_ENDPOINT),
    attempted(7, **DEAD, occurred_at=EARLIER, attempted_at=EARLIER),
    attempted(8, occurred_at=EARLIER, attempted_at=EARLIER + timedelta(hours=1)),
    attempted(9),
)


@pytest.fixture
def recorded(database: Database) -> Database:
    """Deliveries in every state, to two endpoints; one of them had trouble twice, two days apart."""
    sql.execute(database.owner_url, [ADD_ENDPOINT.format(each) for each in (ENDPOINT, OTHER_ENDPOINT)])
    record(database, *RECORDS)
    return database


def planned(settings: Settings, *arguments: str) -> dict[str, Any]:
    """Return the plan that a command prints."""
    made = plant(settings, "deliveries", *arguments, "--output", "json")
    assert made.returncode == 0, made.stderr
    (plan,) = json.loads(made.stdout)
    return dict(plan)


def groups(plan: dict[str, Any]) -> list[tuple[UUID, str, str, int]]:
    """Return the groups of a plan."""
    return [(UUID(each["endpoint_id"]), each["state"], each["type"], each["deliveries"]) for each in plan["groups"]]


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        (["--since", "2020-01-01T00:00:00Z"], {2, 3, 6, 7}),
        (["--endpoint", str(ENDPOINT)], {2, 3, 7}),
        (["--endpoint", str(ENDPOINT), "--state", "dead", "--state", "cancelled"], {2, 3, 4, 7}),
        (["--endpoint", str(ENDPOINT), "--state", "delivered"], {1, 8, 9}),
        (["--type", "genesis.skill.validated"], {3}),
        (["--error", "503", "--since", BEGAN_AT.isoformat()], {2, 3, 6}),
        (["--error", "timeout"], set()),
        (["--event", str(UUID(int=2))], {2}),
        ([str(RECORDS[2].delivery_id), str(RECORDS[4].delivery_id)], {3}),
    ],
    ids=["all", "endpoint", "cancelled", "delivered", "type", "reason", "other reason", "event", "ids"],
)
def test_retry_plans_what_is_asked_for(
    settings: Settings, recorded: Database, arguments: list[str], numbers: set[int]
) -> None:
    """Dead ones unless another state is named; what waits is never sent again, and nothing is ordered."""
    plan = planned(settings, "retry", *arguments)
    ids = {str(each.delivery_id): each.event_id.int for each in RECORDS}
    assert plan["deliveries"] == len(numbers)
    assert {ids[each] for each in plan["examples"]} <= numbers
    assert plan["redrive"] is None
    assert sql.value(recorded.superuser_url, "SELECT count(*) FROM redrives") == 0


async def test_an_order_is_given_once(settings: Settings, recorded: Database) -> None:
    """It is recorded with who, why and what; its deliveries are left out of another plan until they are recorded."""
    await apply(settings)
    arguments = ["retry", "--since", "2020-01-01T00:00:00Z"]
    execute = ["--execute", "--no-follow", "--actor", "op", "--reason", "The deploy is done.", "--rate", "7"]
    first = planned(settings, *arguments, *execute)
    again = planned(settings, *arguments, *execute)
    assert (first["deliveries"], first["redrive"], first["seconds"]) == (4, 1, 0.6)
    assert (again["deliveries"], again["redrive"], again["left_out"]) == (0, None, {"ordered": 4})
    done = [(each.action, each.actor, each.reason) for each in await operations(settings, "2 endpoints")]
    assert done == [("deliveries.retry", "op", "The deploy is done. [4 deliveries; 7 a second]")]
    orders = json.loads(plant(settings, "deliveries", "redrives", "list", "--output", "json").stdout)
    names = ("number", "kind", "state", "deliveries", "queued", "ordered_by", "reason", "rate_per_second")
    assert [[each[name] for name in names] for each in orders] == [
        [1, "retry", "running", 4, 0, "op", "The deploy is done.", 7]
    ]
    stopped = plant(settings, "deliveries", "redrives", "stop", "1")
    assert stopped.returncode == 0
    assert "0 of 4 were sent" in stopped.stderr
    assert planned(settings, *arguments)["deliveries"] == 4
    shown = json.loads(plant(settings, "deliveries", "redrives", "show", "1", "--output", "json").stdout)
    assert (shown[0]["state"], shown[0]["recorded"]) == ("stopped", {})


def test_what_is_not_there_is_an_error(settings: Settings, recorded: Database) -> None:
    """A plan never says that nothing is to be done of a delivery or an endpoint that is not known."""
    for arguments in (["retry", str(UUID(int=77))], ["retry", "--endpoint", str(UUID(int=77))]):
        made = plant(settings, "deliveries", *arguments)
        assert (made.returncode, str(UUID(int=77)) in made.stderr) == (3, True)


async def test_what_died_after_the_plan_is_in_the_order_and_in_its_action(
    settings: Settings, recorded: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The plan stays as it was shown; what was ordered is counted in the order."""
    await apply(settings)
    plan = Redrives.plan

    async def as_more_die(redrives: Redrives, selection: RedriveSelection) -> RedrivePlan:
        made = await plan(redrives, selection)
        await asyncio.to_thread(record, recorded, *(attempted(number, **DEAD) for number in range(20, 25)))
        return made

    monkeypatch.setattr(Redrives, "plan", as_more_die)
    monkeypatch.setattr(redrive_orders, "load_settings", lambda: settings)
    selection = RedriveSelection(filter=DeliveryFilter(endpoint_id=ENDPOINT, since=BEGAN_AT))
    ordering = Ordering(
        execute=True, rate_per_second=7, follow=False, output="json", actor="op", reason="More have died."
    )  # fmt: skip
    await redrive_orders.plan_and_order("retry", selection, ordering)
    told = capsys.readouterr()
    ((shown,), ordered) = json.loads(told.out), "Ordered 7 as redrive 1:"
    assert (shown["deliveries"], shown["redrive"], shown["ordered"], ordered in told.err) == (2, 1, 7, True)
    actions = [each for each in await operations(settings, str(ENDPOINT)) if each.reason.startswith("More have died.")]
    assert [(each.action, each.reason) for each in actions] == [
        ("deliveries.retry", "More have died. [7 deliveries; 7 a second]")
    ]
    assert sql.value(recorded.superuser_url, "SELECT count(*) FROM redrive_slots") == 7


async def test_what_is_missing_is_looked_for_before_its_order_is_begun(
    settings: Settings, recorded: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A search takes minutes: others give orders meanwhile, and what they took is left to them, and not counted."""
    await apply(settings)
    impatient = msgspec.structs.replace(settings, database_lock_timeout_seconds=1)
    missing = [
        MissingDelivery(0, number, 0, uuid4(), uuid4(), BEGAN_AT, "genesis.agent.rated", None, ordered=False)
        for number in range(3)
    ]

    async def as_others_order(search: MissingSearch) -> AsyncIterator[MissingDelivery]:
        for each in missing:
            yield each
        async with open_redrives(impatient) as redrives, redrives.open_order(redrive_order()) as new:
            await new.add_missing(ENDPOINT, missing[:1])

    async def prepare(search: MissingSearch, *times: datetime) -> None:
        """What dispatchers and deliverers have passed is another test's."""

    monkeypatch.setattr(MissingSearch, "prepare", prepare)
    monkeypatch.setattr(MissingSearch, "missing", as_others_order)
    monkeypatch.setattr(redrive_orders, "load_settings", lambda: settings)
    ordering = Ordering(
        execute=True, rate_per_second=7, follow=False, output="json", actor="op", reason="It was paused."
    )  # fmt: skip
    await redrive_orders.plan_replay(ENDPOINT, "1d", ordering)
    told = capsys.readouterr()
    ((plan,), ordered) = json.loads(told.out), "Ordered 2 as redrive 2:"
    assert (plan["deliveries"], plan["ordered"], ordered in told.err) == (3, 2, True)
    actions = [each for each in await operations(settings, str(ENDPOINT)) if each.reason.startswith("It was paused.")]
    assert [each.reason for each in actions] == ["It was paused. [2 deliveries; 7 a second]"]
    lines = "number || '/' || slot || ' ' || source_offset, ', ' ORDER BY number, slot"
    slots = f"SELECT string_agg({lines}) FROM redrive_slots"
    assert sql.value(recorded.superuser_url, slots) == "1/0 0, 2/0 1, 2/1 2"


def test_events_of_endpoints_are_left_out(settings: Settings, recorded: Database) -> None:
    """They are not in the log, from which all that is sent again is made."""
    record(recorded, attempted(10, **DEAD, type="plant.endpoint.warned"))
    plan = planned(settings, "retry", "--type", "plant.endpoint.warned")
    assert (plan["deliveries"], plan["left_out"]) == (0, {"unlogged": 1})


async def test_paused_endpoints_are_not_offered_to_recover(settings: Settings, recorded: Database) -> None:
    """An order would leave out all that they have."""
    await change_state(settings, ENDPOINT, "pause")
    made = plant(settings, "deliveries", "list", "--state", "dead")
    assert (made.returncode, "plant deliveries recover" in made.stderr) == (0, False)


def test_recover_takes_the_last_trouble(settings: Settings, recorded: Database) -> None:
    """Dead and cancelled, back to an hour of successes; with a time, all since then."""
    plan = planned(settings, "recover", str(ENDPOINT))
    assert groups(plan) == [
        (ENDPOINT, "cancelled", "genesis.agent.rated", 1), (ENDPOINT, "dead", "genesis.agent.rated", 1),
        (ENDPOINT, "dead", "genesis.skill.validated", 1),
    ]  # fmt: skip
    assert planned(settings, "recover", str(ENDPOINT), "--since", EARLIER.isoformat())["deliveries"] == 4


async def test_an_endpoint_that_takes_nothing_is_left_out(settings: Settings, recorded: Database) -> None:
    """What is sent to it again would be cancelled at once."""
    await apply(settings)
    assert plant(settings, "endpoints", "pause", str(ENDPOINT)).returncode == 0
    made = plant(settings, "deliveries", "recover", str(ENDPOINT), "--execute")
    assert made.returncode == 0
    assert "3 are left out: their endpoint takes no deliveries now." in made.stderr
    assert "Nothing is to be sent." in made.stderr
    unknown = plant(settings, "deliveries", "recover", str(UUID(int=99)))
    assert (unknown.returncode, "There is no endpoint" in unknown.stderr) == (3, True)


def test_lists_offer_to_recover(settings: Settings, recorded: Database) -> None:
    """After dead letters of an endpoint that has taken a later event, and of no other."""
    offered = f"plant deliveries recover {ENDPOINT}"
    made = plant(settings, "deliveries", "list", "--state", "dead")
    assert offered in made.stderr
    assert str(OTHER_ENDPOINT) not in made.stderr
    assert offered in plant(settings, "endpoints", "show", str(ENDPOINT)).stderr
    assert "recover" not in plant(settings, "endpoints", "show", str(OTHER_ENDPOINT)).stderr


def ago(number: int, hours: float, **changes: Any) -> DeliveryAttempted:
    """Return a record of so many hours before the others."""
    at = BEGAN_AT - timedelta(hours=hours)
    return attempted(number, occurred_at=at, attempted_at=at, **changes)


def test_an_offer_counts_what_recover_would_order(settings: Settings, database: Database) -> None:
    """Of the last trouble, without events of endpoints; dead letters from before it are left to retry, as is said."""
    sql.execute(database.owner_url, [ADD_ENDPOINT.format(ENDPOINT)])
    record(
        database, *(ago(number, 10, **DEAD) for number in range(1, 41)), ago(41, 8), ago(42, 5, **DEAD),
        ago(43, 4.5, **DEAD, type="plant.endpoint.warned"), ago(44, 4),
    )  # fmt: skip
    for command in (["deliveries", "list", "--state", "dead"], ["endpoints", "show", str(ENDPOINT)]):
        told = plant(settings, *command).stderr
        assert f"1 delivery of its last trouble is dead or cancelled: plant deliveries recover {ENDPOINT}" in told
        assert f"40 older deliveries are dead, from before the endpoint's last trouble: {RETRY} takes them too" in told
    assert planned(settings, "recover", str(ENDPOINT))["deliveries"] == 1
    assert planned(settings, *RETRY.split()[2:])["deliveries"] == 41


async def test_what_an_order_has_is_not_offered(settings: Settings, recorded: Database) -> None:
    """It would be left out of the plan of another."""
    await apply(settings)
    record(recorded, ago(20, 240, **DEAD), ago(21, 239))
    planned(settings, "recover", str(ENDPOINT), "--since", EARLIER.isoformat(), "--execute", "--no-follow")
    told = plant(settings, "endpoints", "show", str(ENDPOINT)).stderr
    assert "plant deliveries recover" not in told
    assert f"1 older delivery is dead, from before the endpoint's last trouble: {RETRY} takes it too" in told


def test_events_of_endpoints_alone_are_not_offered(settings: Settings, database: Database) -> None:
    """An order would leave out all of them."""
    sql.execute(database.owner_url, [ADD_ENDPOINT.format(ENDPOINT)])
    record(database, ago(1, 5, **DEAD, type="plant.endpoint.warned"), ago(2, 4))
    made = plant(settings, "deliveries", "list", "--state", "dead")
    assert (made.returncode, str(ENDPOINT) in made.stdout, made.stderr) == (0, True, "")


def test_an_endpoint_that_fails_again_is_not_offered(settings: Settings, database: Database) -> None:
    """It took deliveries after an earlier trouble, and none since its last one began."""
    sql.execute(database.owner_url, [ADD_ENDPOINT.format(ENDPOINT)])
    record(database, ago(1, 10, **DEAD), ago(2, 8), ago(3, 5, **DEAD))
    assert "takes deliveries again" not in plant(settings, "endpoints", "show", str(ENDPOINT)).stderr


@pytest.mark.parametrize("arguments", [["retry"], ["recover"], ["redrives", "show", "0"], ["retry", "--rate", "0"]])
def test_too_little_is_a_usage_error(settings: Settings, arguments: list[str]) -> None:
    """Nothing is chosen by default."""
    assert plant(settings, "deliveries", *arguments).returncode == 2
