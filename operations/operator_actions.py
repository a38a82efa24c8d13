"""Operator actions: recorded on `plant.operations` before they take effect, and chained there like any other event.

Also the options of every command with such an action: the actor, and the reason.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID, uuid4

import click
import msgspec

if TYPE_CHECKING:
    from runtime.settings import Settings
    from streams.producer import EventProducer
    from streams.record_position import RecordPosition

ACTIONS_SOURCE: Final = "plant/operations"
ACTIONS_PRODUCER: Final = "plant.operations"

DATABASE_ACTIONS: Final = ("keys.", "producers.", "projections.", "tokens.", "endpoints.", "deliveries.")
"""Actions that change the database, by the begin of their names."""

F = TypeVar("F", bound=Callable[..., Any])

actor_option = click.option("--actor", default="", help="Account that acts.  [default: the system user]")


class OperatorAction(msgspec.Struct, frozen=True, kw_only=True):
    """An action before it is done: `action` such as `keys.add`, its `target`, and the reason."""

    action: str
    target: str
    reason: str
    actor: str = ""
    operation_id: UUID = msgspec.field(default_factory=uuid4)


def reason_option(default: str) -> Callable[[F], F]:
    """Return the option `--reason`, with the reason that is recorded where none is given."""
    return click.option("--reason", default=default, show_default=True, help="Why; kept permanently.")


def with_facts(reason: str, facts: Sequence[str]) -> str:
    """Return the reason as it is recorded: the details of the action follow it in brackets.

    >>> with_facts("It is time.", ["scheme v1a", "overlap 24h"])
    'It is time. [scheme v1a; overlap 24h]'
    """
    return f"{reason} [{'; '.join(facts)}]" if facts else reason


async def record(settings: Settings, action: OperatorAction) -> RecordPosition:
    """Record an action. It may be done only once this has returned: Kafka then has the record safely.

    Raises KafkaUnavailable, and then nothing must be done. Waits a little for a broker that is only starting. Raises
    DatabaseUnwritable for an action that the database would not take: what is recorded is done.
    """
    # The commands' help needs none of these, and they are slow to import.
    from streams.producer import EventProducer
    from streams.topics import OPERATIONS_TOPIC

    if action.action.startswith(DATABASE_ACTIONS):
        await _require_writable(settings)
    async with EventProducer(settings, topics=(OPERATIONS_TOPIC,)) as producer:
        return await publish_action(producer, action)


async def publish_action(producer: EventProducer, action: OperatorAction) -> RecordPosition:
    """Record an action through a producer that is connected. Raises KafkaUnavailable, and then nothing must be done."""
    from schemas.event_id import event_id
    from schemas.events import OperationRecorded
    from schemas.sender_headers import sender_headers

    event = OperationRecorded(
        event_id=event_id(ACTIONS_PRODUCER, str(action.operation_id)),
        operation_id=action.operation_id,
        occurred_at=datetime.now(UTC),
        actor=action.actor or account(),
        action=action.action,
        target=action.target,
        reason=action.reason,
    )
    sender = sender_headers(ACTIONS_PRODUCER, str(action.operation_id))
    return await producer.publish(event, source=ACTIONS_SOURCE, sender=sender)


async def _require_writable(settings: Settings) -> None:
    from sqlalchemy import text

    from database.connector import connect
    from database.errors import DatabaseUnwritable

    database = connect(settings, "operator")
    try:
        async with database.transaction() as connection:
            read_only = (await connection.execute(text("SHOW transaction_read_only"))).scalar_one()
    finally:
        await database.close()
    if read_only == "on":
        raise DatabaseUnwritable(
            why="Its transactions are read-only: a standby, or an administrator's setting. Nothing was recorded.",
            next_step="psql -c 'SHOW default_transaction_read_only' -c 'SELECT pg_is_in_recovery()'",
        )


def account() -> str:
    """Return the system user's name; in a container the user may have a number only."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
