"""`plant deliveries`: which deliveries a list finds, page by page, and what `show` says of one."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import msgspec
import pytest
from click.shell_completion import ShellComplete

from devstack import sql
from operations.cli.main import cli
from runtime.settings import Settings
from tests.conftest import Database
from tests.support.command_line import plant
from tests.support.made_attempts import BEGAN_AT, ENDPOINT, attempted
from tests.support.recorded_attempts import ADD_ENDPOINT, OTHER_ENDPOINT, record

DEAD: Final = attempted(3, outcome="failed", state="dead", status_code=503, attempt=6, hop=5)
TIMED_OUT: Final = attempted(
    4, outcome="failed", state="waiting", status_code=None, error_class="timeout", why="No whole answer came in time.",
    next_attempt_at=BEGAN_AT + timedelta(minutes=1), answer=b"",
)  # fmt: skip
RECORDS: Final = (
    attempted(1),
    attempted(2, type="genesis.skill.validated"),
    DEAD,
    TIMED_OUT,
    attempted(2, endpoint_id=OTHER_ENDPOINT),
)


@pytest.fixture
def recorded(database: Database) -> Database:
    sql.execute(database.owner_url, [ADD_ENDPOINT.format(each) for each in (ENDPOINT, OTHER_ENDPOINT)])
    record(database, *RECORDS)
    return database


def listed(settings: Settings, *arguments: str) -> list[dict[str, Any]]:
    made = plant(settings, "deliveries", "list", "--output", "json", *arguments)
    assert made.returncode == 0, made.stderr
    return list(json.loads(made.stdout))


def numbers(rows: list[dict[str, Any]]) -> list[int]:
    return [row["source_offset"] for row in rows]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ((), [4, 3, 2, 2, 1]),
        (("--endpoint", str(OTHER_ENDPOINT)), [2]),
        (("--event", str(UUID(int=2))), [2, 2]),
        (("--event", str(UUID(int=2)), "--endpoint", str(ENDPOINT)), [2]),
        (("--event", str(UUID(int=9))), []),
        (("--type", "genesis.skill.validated"), [2]),
        (("--state", "dead"), [3]),
        (("--state", "waiting"), [4]),
        (("--state", "cancelled"), []),
        (("--state", "delivered", "--endpoint", str(ENDPOINT)), [2, 1]),
        (("--reason", "503"), [3]),
        (("--reason", "timeout"), [4]),
        (("--since", (BEGAN_AT + timedelta(seconds=3)).isoformat()), [4, 3]),
        (("--until", (BEGAN_AT + timedelta(seconds=2)).isoformat()), [1]),
        (("--limit", "2"), [4, 3]),
    ],
    ids=str,
)
@pytest.mark.usefixtures("recorded")
def test_a_list_has_what_is_asked_for(settings: Settings, arguments: tuple[str, ...], found: list[int]) -> None:
    """By endpoint, event, type, state, reason and the time of the event, the newest event first."""
    assert numbers(listed(settings, *arguments)) == found


@pytest.mark.usefixtures("recorded")
def test_a_list_goes_on_where_another_ended(settings: Settings) -> None:
    """Deliveries of one event and time are in some order; none is left out, and none comes twice."""
    ids: list[str] = []
    after: tuple[str, ...] = ()
    while True:
        made = plant(settings, "deliveries", "list", "--limit", "1", "--output", "jsonl", *after)
        ids += [json.loads(line)["id"] for line in made.stdout.splitlines()]
        if "--after" not in made.stderr:
            break
        after = ("--after", made.stderr.split("--after ")[1].strip())
    assert ids == [row["id"] for row in listed(settings)]
    assert len(set(ids)) == 5


def test_a_list_is_read_in_pages(recorded: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long list is read some rows at a time."""
    record(recorded, *(attempted(number) for number in range(10, 1210)))
    rows = listed(settings, "--limit", "100000")
    assert numbers(rows) == [*range(1209, 9, -1), 4, 3, 2, 2, 1]


@pytest.mark.usefixtures("recorded")
def test_a_table_shows_what_one_looks_for(settings: Settings) -> None:
    """The time of the event, the delivery, its state, its attempts, and what the last one came to."""
    made = plant(settings, "deliveries", "list", "--state", "dead")
    head, line = made.stdout.splitlines()
    assert head.split() == ["occurred", "at", "id", "state", "attempts", "last", "type", "endpoint", "id"]
    assert line.split() == [
        "2026-11-27T22:00:03Z", str(DEAD.delivery_id), "dead", "6", "503", "genesis.agent.rated", str(ENDPOINT),
    ]  # fmt: skip


def test_nothing_is_said_where_nothing_is(settings: Settings) -> None:
    """On stderr: stdout is data."""
    made = plant(settings, "deliveries", "list")
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "No such delivery is recorded.\n")


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("list", "--endpoint", str(UUID(int=7))), 3, "There is no endpoint"),
        (("show", str(UUID(int=7))), 3, "No delivery 00000000-0000-0000-0000-000000000007 is recorded"),
        (("show", "msg_1"), 2, "is not a valid UUID"),
        (("list", "--reason", "late"), 2, "none of dns"),
        (("list", "--reason", "1000"), 2, "no status code"),
        (("list", "--since", "42"), 2, "is no time"),
        (("list", "--since", "yesterday"), 2, "is no value of --since"),
        (("list", "--after", "2026-11-27"), 2, "is no cursor"),
        (("list", "--after", f"2026-11-27T22:00/{UUID(int=7)}"), 2, "no time zone"),
    ],
    ids=str,
)
def test_what_can_not_be_asked_is_said(settings: Settings, arguments: tuple[str, ...], code: int, said: str) -> None:
    """An unknown delivery or endpoint is a no, a bad option a usage error; each says what to do next."""
    made = plant(settings, "deliveries", *arguments)
    assert made.returncode == code
    assert said in made.stderr
    assert "next:" in made.stderr


def test_a_delivery_is_shown_with_its_attempts(recorded: Database, settings: Settings) -> None:
    """As a timeline: when, what came back, and what was sent where that is another than before."""
    put_off = msgspec.structs.replace(
        TIMED_OUT, outcome="postponed", hop=1, attempted_at=BEGAN_AT + timedelta(minutes=1), error_class=None,
        why="The endpoint gets no attempts now.", request=b"", next_attempt_at=BEGAN_AT + timedelta(minutes=2),
    )  # fmt: skip
    last = attempted(4, attempt=2, hop=2, attempted_at=BEGAN_AT + timedelta(minutes=2), answer=b"\x1b[31mok\xff\n")
    record(recorded, put_off, last)
    made = plant(settings, "deliveries", "show", str(last.delivery_id))
    assert made.returncode == 0, made.stderr
    fields, _, lines = made.stdout.partition("\n\n")
    shown = dict(re.split(" {2,}", line) for line in fields.splitlines())
    assert (shown["state"], shown["attempts"], shown["redriven"]) == ("delivered", "2", "0")
    assert lines.splitlines() == [
        "2026-11-27T22:00:04.030Z  attempt 1  failed  timeout  12.5 ms  No whole answer came in time."
        "  next at 2026-11-27T22:01:00.000Z",
        '    sent    {"type":"genesis.agent.rated"}',
        "2026-11-27T22:01:00.000Z  no attempt  postponed  The endpoint gets no attempts now."
        "  next at 2026-11-27T22:02:00.000Z",
        "2026-11-27T22:02:00.000Z  attempt 2  delivered  200  12.5 ms  delivered",
        r"    answer  \x1b[31mok\xff\n",
    ]


@pytest.mark.usefixtures("recorded")
def test_a_delivery_as_json_has_all_of_it(settings: Settings) -> None:
    """The fields of its row, and a list of its attempts."""
    made = plant(settings, "deliveries", "show", str(DEAD.delivery_id), "--output", "jsonl")
    document = json.loads(made.stdout)
    assert document["state"] == "dead"
    assert document["occurred_at"] == "2026-11-27T22:00:03Z"
    (attempt,) = document["timeline"]
    assert (attempt["attempt"], attempt["status_code"], attempt["answer"]) == (6, 503, "ok")


def test_it_is_read_as_an_operator(recorded: Database, settings: Settings) -> None:
    """No other address is needed."""
    alone = msgspec.structs.replace(
        settings, database_deliverer_url="", database_writer_url="", database_api_url="", database_owner_url="",
        master_key="",
    )  # fmt: skip
    assert len(listed(alone)) == 5


def test_a_delivery_of_a_day_is_found(database: Database, settings: Settings) -> None:
    """In the tables of days as in the others."""
    sql.value(database.deliverer_url, "SELECT add_delivery_days(1)")
    today = attempted(8, occurred_at=datetime.now(UTC))
    record(database, today, attempted(9))
    assert numbers(listed(settings)) == [8, 9]
    assert plant(settings, "deliveries", "show", str(today.delivery_id)).returncode == 0


def test_a_shell_completes_reasons_and_states() -> None:
    """Error classes and states are completed."""

    def completed(option: str, begun: str) -> set[str]:
        complete = ShellComplete(cli, {}, "plant", "_PLANT_COMPLETE")
        return {item.value for item in complete.get_completions(["deliveries", "list", option], begun)}

    assert completed("--reason", "t") == {"tls", "timeout"}
    assert completed("--state", "d") == {"delivered", "dead"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("list", "--reason", "0999999999999"),
        ("list", "--reason", "0503"),
        ("list", "--type", "\udcff"),
        ("list", "--since", "0001-01-01T00:00+14:00"),
        ("list", "--until", "9999-12-31T23:59-14:00"),
        ("list", "--after", f"0001-01-01T00:00+14:00/{ENDPOINT}"),
        ("redrives", "list", "--limit", str(2**63)),
        ("retry", "--error", "0999999999999"),
        ("recover", str(ENDPOINT), "--since", "0001-01-01T00:00+14:00"),
    ],
)
def test_what_no_column_can_hold_is_a_fault_of_usage(settings: Settings, arguments: tuple[str, ...]) -> None:
    """It is told with the option's name, before the database is asked."""
    made = plant(settings, "deliveries", *arguments)
    assert (made.returncode, made.stdout) == (2, "")
    assert arguments[-2] in made.stderr
