"""Requests on a connection that has just closed: an error that aiokafka expects, under uvloop too.

asyncio's own transports drop what is written to them once they are closed. uvloop's raise RuntimeError, which ends the
tasks of aiokafka that keep metadata, send batches or fetch: for good, and without a line in the log (seen).
"""

from __future__ import annotations

from functools import wraps
from typing import Any, Final

from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError

from streams.kafka.repair import Repair

REPAIR: Final = Repair(
    name="closed connections",
    needed_by="aiokafka 0.14.0",
    reason="Under uvloop, writing to a connection that has just closed raises RuntimeError, which ends aiokafka's"
    " tasks.",
    until="aiokafka takes any error of a write for a broken connection.",
    touches=(
        "aiokafka.conn:AIOKafkaConnection.send(request, expect_response)",
        "aiokafka.conn:AIOKafkaConnection._send_sasl_token(payload, expect_response)",
        "aiokafka.conn:AIOKafkaConnection._writer",
        "aiokafka.conn:AIOKafkaConnection.close(reason)",
        "aiokafka.conn:CloseReason.CONNECTION_BROKEN",
    ),
)

_SENDING: Final = ("send", "_send_sasl_token")


def expect_closed_connections() -> None:
    """Make this process's aiokafka clients take a write that fails for a broken connection."""
    for name in _SENDING:
        method = getattr(AIOKafkaConnection, name)
        if not hasattr(method, "__wrapped__"):
            setattr(AIOKafkaConnection, name, _expecting(method))


def _expecting(method: Any) -> Any:
    @wraps(method)
    def send(connection: AIOKafkaConnection, *arguments: Any, **options: Any) -> Any:
        writer = connection._writer
        try:
            return method(connection, *arguments, **options)
        except RuntimeError as error:
            if writer is None or not writer.transport.is_closing():
                raise
            connection.close(reason=CloseReason.CONNECTION_BROKEN)
            raise KafkaConnectionError(f"The connection to {connection.host}:{connection.port} is closed.") from error

    return send
