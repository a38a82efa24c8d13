"""The headers of the control records that operators publish."""

from __future__ import annotations

from typing import Final

from operations.operator_actions import ACTIONS_SOURCE, OperatorAction
from schemas.control import ControlRecord
from schemas.sender_headers import OPERATION_HEADER, Header

SPECVERSION: Final = ("ce_specversion", b"1.0")


def control_headers(record: ControlRecord, action: OperatorAction) -> list[Header]:
    """Return CloudEvents' headers of a control record, but for the time, and the operator action that published it."""
    return [
        SPECVERSION,
        ("ce_id", str(record.event_id).encode()),
        ("ce_type", record.event_type.encode()),
        ("ce_source", ACTIONS_SOURCE.encode()),
        (OPERATION_HEADER, str(action.operation_id).encode()),
    ]
