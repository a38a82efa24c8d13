"""Writes `chain.json`: records, their canonical bytes and their hashes, for anyone who checks the formula elsewhere.

`python -m audit.vectors.generate` rewrites the file, and the worked example in the docs; tests compare both with what
this would write.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, Final, NamedTuple

from audit.canonical import Header, event_data, event_data_v2, field, headers_bytes
from audit.chain import CHAIN_START, ChainSlice, extend_slice

FILE: Final = Path(__file__).parent / "chain.json"
PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "audit-format.md"
BEGIN: Final = "<!-- worked example: written by `python -m audit.vectors.generate` -->\n"
END: Final = "<!-- end of the worked example -->\n"
SHOWN: Final = "v2: the same record with every disposition"

KEY: Final = b"01234567-89ab-4def-8123-456789abcdef"
CLOUD_EVENT: Final = (
    ("ce_specversion", b"1.0"),
    ("ce_id", b"72d76358-5032-530d-b5a7-ee89ea19f5a4"),
    ("ce_type", b"genesis.agent.onboarded"),
    ("ce_source", b"plant/ingress"),
    ("ce_time", b"2026-01-02T03:04:05.678901Z"),
)
ABOUT: Final = (
    "hash = sha256(previous_hash + event_data); docs/reference/audit-format.md has the layout. Bytes are in hex. "
    "A record's previous_hash is the hash of the record before it; the chain's own comes before the first. Records "
    "with a version are of that one, and covered together with their disposition and event id; the others are v1."
)


class Case(NamedTuple):
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...] = ()
    outcome: tuple[str, bytes | None] | None = None
    """Disposition and event id of a v2 entry; None: it is v1."""


EVENT_ID: Final = bytes.fromhex("72d763585032530db5a7ee89ea19f5a4")
EVENT: Final = Case(41, 1767323045678, KEY, bytes.fromhex("0000000001") + EVENT_ID + bytes(range(32)), CLOUD_EVENT)
SWITCH_ID: Final = bytes.fromhex("a0823e333a4e529a9ff44b6cbd15fbc6")
SWITCH: Final = Case(1, 1767323045679, None, bytes.fromhex("000000000c") + SWITCH_ID + b"\x04")

CHAINS: Final[dict[str, tuple[str, int, tuple[Case, ...]]]] = {
    "the first record of a partition": ("t", 0, (Case(0, 0, b"k", b"v"),)),
    "an event with its CloudEvents headers": (
        "genesis.events",
        3,
        (Case(41, 1767323045678, KEY, bytes.fromhex("0000000001") + bytes(range(48)), CLOUD_EVENT),),
    ),
    "null and empty keys differ": ("t", 1, (Case(0, 1, None, b"v"), Case(1, 1, b"", b"v"))),
    "null and empty values differ": ("t", 2, (Case(0, 1, b"k", None), Case(1, 1, b"k", b""))),
    "nothing at all": ("t", 3, (Case(0, 0, None, None),)),
    "null and empty header values differ": (
        "t",
        4,
        (Case(0, 1, b"k", b"v", (("h", None),)), Case(1, 1, b"k", b"v", (("h", b""),))),
    ),
    "repeated headers keep their number and order": (
        "t",
        5,
        (
            Case(0, 1, b"k", b"v", (("h", b"1"), ("h", b"2"))),
            Case(1, 1, b"k", b"v", (("h", b"2"), ("h", b"1"))),
            Case(2, 1, b"k", b"v", (("h", b"1"), ("h", b"1"), ("h", b"2"))),
        ),
    ),
    "header names are UTF-8 and may be empty": ("t", 6, (Case(0, 1, b"k", b"v", (("größe", b"\xff\x00"), ("", b""))),)),
    "topics are UTF-8": ("ereignisse.größe.事件", 7, (Case(0, 1, b"k", b"v"),)),
    "the timestamp before 1970 that Kafka uses for none": ("t", 8, (Case(0, -1, b"k", b"v"),)),
    "large numbers": ("t", 2**31 - 1, (Case(2**63 - 1, 253402300799999, b"k", b"v"),)),
    "long keys and values": ("t", 9, (Case(0, 1, b"k" * 4096, b"v" * 4096, (("h", b"x" * 4096),)),)),
    "offsets have gaps, links have none": (
        "genesis.events",
        0,
        (
            Case(0, 1767323045678, KEY, b"first", CLOUD_EVENT),
            Case(1, 1767323045678, KEY, b"second", CLOUD_EVENT[:4]),
            Case(7, 1767323045600, None, b"", ()),
            Case(4294967296, 1767323045700, b"", None, (("h", None), ("h", b""))),
        ),
    ),
    "v2: the same record with every disposition": (
        "genesis.events",
        3,
        tuple(
            EVENT._replace(offset=41 + index, outcome=(name, EVENT_ID))
            for index, name in enumerate(("applied", "repeat", "poison", "parked", "control"))
        ),
    ),
    "v2: a record without an event id": ("t", 0, (Case(0, 1, None, b"no event", (), ("poison", None)),)),
    "v2: an event id of zeros is not null": ("t", 0, (Case(0, 1, None, b"no event", (), ("poison", bytes(16))),)),
    "v2: long and null fields": (
        "t",
        9,
        (
            Case(0, 1, b"k" * 4096, b"v" * 4096, (("h", b"x" * 4096),), ("applied", EVENT_ID)),
            Case(1, 1, None, None, (), ("poison", None)),
            Case(2, 1, b"", b"", (("h", None),), ("poison", None)),
        ),
    ),
    "a partition goes over from v1 to v2 with a control record": (
        "genesis.events",
        3,
        (
            EVENT._replace(offset=0),
            SWITCH._replace(outcome=("control", SWITCH_ID)),
            EVENT._replace(offset=2, outcome=("repeat", EVENT_ID)),
            SWITCH._replace(offset=7, outcome=("control", SWITCH_ID)),
        ),
    ),
}


def vectors() -> dict[str, Any]:
    """Return the content of the file."""
    return {
        "format": "plant.audit.vectors/2",
        "about": ABOUT,
        "chains": [_chain(name, *chain) for name, chain in CHAINS.items()],
    }


def text() -> str:
    """Return the file's text, line for line."""
    return json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n"


def _chain(name: str, topic: str, partition: int, cases: tuple[Case, ...]) -> dict[str, Any]:
    headers = [headers_bytes(case.headers) for case in cases]
    offsets, timestamps_ms, keys, values, _, outcomes = zip(*cases, strict=True)
    dispositions, event_ids = zip(*(outcome or ("", None) for outcome in outcomes), strict=True)
    first_v2 = sum(outcome is None for outcome in outcomes)
    records = ChainSlice(offsets, timestamps_ms, keys, values, headers, dispositions, event_ids)
    hashes = extend_slice(topic, partition, CHAIN_START, records, first_v2)
    return {
        "name": name,
        "topic": topic,
        "partition": partition,
        "previous_hash": CHAIN_START.hex(),
        "records": [
            _record(topic, partition, case, header_bytes) | {"hash": digest.hex()}
            for case, header_bytes, digest in zip(cases, headers, hashes, strict=True)
        ],
    }


def _record(topic: str, partition: int, case: Case, header_bytes: bytes) -> dict[str, Any]:
    record = {
        "offset": case.offset,
        "timestamp_ms": case.timestamp_ms,
        "key": _hex(case.key),
        "value": _hex(case.value),
        "headers": [[header, _hex(value)] for header, value in case.headers],
        "headers_bytes": header_bytes.hex(),
    }
    if case.outcome is None:
        return record | {"event_data": event_data(topic, partition, *case[:4], header_bytes).hex()}
    disposition, event_id = case.outcome
    data = event_data_v2(topic, partition, *case[:4], header_bytes, disposition, event_id)
    outcome = {"version": 2, "disposition": disposition, "event_id": _hex(event_id)}
    return record | outcome | {"event_data": data.hex()}


def _hex(data: bytes | None) -> str | None:
    return None if data is None else data.hex()


def worked_example() -> str:
    """Return the bytes of one vector as Markdown, one field on each line."""
    topic, partition, (case, *_) = CHAINS[SHOWN]
    (record,) = _chain(SHOWN, topic, partition, (case,))["records"]
    assert case.outcome is not None
    disposition, event_id = case.outcome
    lines = [("previous_hash", CHAIN_START), ("domain", field(b"plant.event.v2")), ("topic", field(topic.encode()))]
    lines += [("partition", field(struct.pack(">i", partition))), ("offset", field(struct.pack(">q", case.offset)))]
    lines += [("timestamp in ms", field(struct.pack(">q", case.timestamp_ms)))]
    lines += [("key", field(case.key or b"")), ("value", field(case.value or b""))]
    lines += [("number of headers", struct.pack(">I", len(case.headers)))]
    for name, value in case.headers:
        lines += [(f"{name}: name", field(name.encode())), (f"{name}: value", field(value or b""))]
    lines += [("disposition", field(disposition.encode())), ("event id", field(event_id or b""))]
    assert b"".join(data for _, data in lines[1:]).hex() == record["event_data"]
    width = max(len(name) for name, _ in lines)
    shown = [f"{name:{width}}  {data.hex() if data == CHAIN_START else _spaced(data)}" for name, data in lines]
    return "\n".join(["```text", *shown, "", f"{'hash':{width}}  {record['hash']}", "```", ""])


def page(text: str) -> str:
    """Return the docs page with the current worked example."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{worked_example()}{END}{after}"


def _spaced(data: bytes) -> str:
    """Return hex with a space after the length."""
    return f"{data[:4].hex()} {data[4:].hex()}".rstrip()


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
