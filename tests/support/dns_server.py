"""A DNS server of a test's own on the loopback interface, whose answers the test writes."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address
from types import MappingProxyType
from typing import Final, cast

A: Final = 1
AAAA: Final = 28
SERVER_FAILURE: Final = 2
NAME_ERROR: Final = 3
REFUSED: Final = 5

Answers = Mapping[str, Sequence[Sequence[str]]]
"""For each name the addresses of the first answer, of the second, and so on; the last one is repeated."""
Codes = Mapping[str, int | None]
"""For each name the error in place of an answer, None where none comes."""
NO_CODES: Final[Codes] = MappingProxyType({})


class DnsServer(asyncio.DatagramProtocol):
    """Answers questions for A and AAAA; the answers of a name go on by one with each question for A."""

    def __init__(self, answers: Answers, codes: Codes = NO_CODES) -> None:
        self._answers = {name: list(each) for name, each in answers.items()}
        self._codes = codes
        self.questions: list[tuple[str, int]] = []
        self.address = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # The loop's own class of datagram transports is no asyncio.DatagramTransport in Python 3.11.
        self._transport = cast(asyncio.DatagramTransport, transport)
        host, port = transport.get_extra_info("sockname")
        self.address = f"{host}:{port}"

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        name, end = _read_name(data)
        kind = struct.unpack("!H", data[end : end + 2])[0]
        self.questions.append((name, kind))
        question = data[12 : end + 4]
        code = self._codes.get(name, 0 if name in self._answers else NAME_ERROR)
        if code is None:
            return
        records = b"".join(_record(kind, address) for address in self._addresses(name, kind))
        count = len(records) // (16 if kind == A else 28)
        head = data[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, count, 0, 0)
        self._transport.sendto(head + question + records, addr)

    def _addresses(self, name: str, kind: int) -> list[str]:
        answers = self._answers.get(name, [[]])
        version = {A: 4, AAAA: 6}.get(kind)
        found = [address for address in answers[0] if ip_address(address).version == version]
        if kind == A and len(answers) > 1:
            answers.pop(0)
        return found


@asynccontextmanager
async def dns_server(answers: Answers, codes: Codes = NO_CODES) -> AsyncIterator[DnsServer]:
    """Serve these answers and errors on a free port."""
    loop = asyncio.get_running_loop()
    local = ("127.0.0.1", 0)
    transport, server = await loop.create_datagram_endpoint(lambda: DnsServer(answers, codes), local_addr=local)
    try:
        yield server
    finally:
        transport.close()


def _read_name(data: bytes) -> tuple[str, int]:
    labels, at = [], 12
    while length := data[at]:
        labels.append(data[at + 1 : at + 1 + length].decode("ascii").lower())
        at += 1 + length
    return ".".join(labels), at + 1


def _record(kind: int, address: str) -> bytes:
    packed = ip_address(address).packed
    return struct.pack("!HHHIH", 0xC00C, kind, 1, 0, len(packed)) + packed
