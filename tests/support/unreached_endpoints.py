"""Endpoints to which no connection is made, or none by TLS, and what becomes of attempts: data for a test and a page.

`tests/integration/deliveries/test_attempts.py` sends to each; `tests/support/hostile_receivers.py` writes the page.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final

from deliveries.outcomes import AttemptOutcome, ErrorClass, OutcomeKind, classify
from tests.support.certificates import Authority
from tests.support.dns_server import REFUSED, SERVER_FAILURE, Answers, Codes
from tests.support.raw_answers import Answer, head, repeats, resets, sends, serving, trickles, waits
from tests.support.tls_front import make_certificate

NAME: Final = "receiver.test"
LOCAL: Final = {"deliveries_schemes": "http,https", "deliveries_ports": "1-65535", "deliveries_allowed_names": NAME,
                "deliveries_allowed_networks": "127.0.0.1,127.0.0.4"}  # fmt: skip
"""What an operator allows these endpoints."""
ADDRESSES: Final[Answers] = {
    NAME: [["127.0.0.1"]],
    f"empty.{NAME}": [[]],
    f"loopback.{NAME}": [["127.0.0.9"]],
    f"private.{NAME}": [["10.0.0.9"]],
    f"mixed.{NAME}": [["127.0.0.1", "10.0.0.9"]],
    f"versions.{NAME}": [["127.0.0.1", "::1"]],
    f"two.{NAME}": [["127.0.0.1", "127.0.0.4"]],
}
CODES: Final[Codes] = {f"failing.{NAME}": SERVER_FAILURE, f"refusing.{NAME}": REFUSED, f"mute.{NAME}": None}

SERVER_HELLO: Final = bytes.fromhex("1603034000 02003ffc 0303") + bytes(16_374)
"""The first message of a handshake, as long as one may be."""
HELLO_REQUESTS: Final = bytes.fromhex("1603034000") + bytes(16_384)
"""Messages without content that ask for a handshake, which a client passes over while one is under way."""
WARNING: Final = bytes.fromhex("1503030002 015a")


@dataclass(frozen=True)
class Authorities:
    """An authority whose certificates the client trusts, one that it does not know, and a folder for keys."""

    folder: Path
    trusted: Authority
    unknown: Authority


Listens = Callable[[Authorities], AbstractAsyncContextManager[int]]
"""Return what listens at a port of 127.0.0.1, and yields it."""
Signs = Callable[[Authorities], tuple[Path, Path]]
"""Return the files of a certificate and of its key."""


@dataclass(frozen=True)
class Endpoint:
    """What keeps requests from an endpoint, and what comes of the attempt; a few have nothing that does."""

    does: str
    listens: Listens
    error_class: ErrorClass | None
    origin: str = f"https://{NAME}"
    status_code: int | None = None
    hangs: bool = False

    @property
    def kind(self) -> OutcomeKind:
        """What the attempt means for the delivery."""
        return classify(AttemptOutcome(status_code=self.status_code, error_class=self.error_class))


def certificate(**options: Any) -> Signs:
    """Return a maker of certificates by the trusted authority, for the endpoint's name unless there is another host."""

    def sign(authorities: Authorities) -> tuple[Path, Path]:
        files = authorities.trusted.certificate("receiver", **{"host": NAME, **options})
        return files.certificate_file, files.key_file

    return sign


def unknown_certificate(authorities: Authorities) -> tuple[Path, Path]:
    """Return a certificate by the authority that the client does not know."""
    files = authorities.unknown.certificate("receiver", host=NAME)
    return files.certificate_file, files.key_file


def self_signed(authorities: Authorities) -> tuple[Path, Path]:
    """Return a certificate by nobody else."""
    return make_certificate(authorities.folder, "receiver", NAME)


def speaks_tls(
    signs: Signs,
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    *,
    ciphers: str = "ALL:@SECLEVEL=0",
    asks_certificate: bool = False,
) -> Listens:
    """Return a receiver that answers 200 by this version of TLS, to clients that have a certificate where it asks."""

    @asynccontextmanager
    async def listen(authorities: Authorities) -> AsyncIterator[int]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*signs(authorities))
        context.set_ciphers(ciphers)
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of the versions before 1.2
            context.minimum_version = context.maximum_version = version
        if asks_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(authorities.trusted.file)
        async with serving(_over_tls(context), at_once=True) as port:
            yield port

    return listen


def _over_tls(context: ssl.SSLContext) -> Answer:
    """Return an answer of 200 by TLS; or the alert that says why there is none, which asyncio's servers don't send."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        peer = context.wrap_bio(incoming, outgoing, server_side=True)

        async def step(take: Callable[[], object]) -> None:
            while True:
                try:
                    take()
                    return
                except ssl.SSLWantReadError:
                    writer.write(outgoing.read())
                    if data := await reader.read(65_536):
                        incoming.write(data)
                    else:
                        incoming.write_eof()

        try:
            await step(peer.do_handshake)
            await step(lambda: peer.read(65_536))
            peer.write(head(200))
        except ssl.SSLError:
            pass
        writer.write(outgoing.read())
        writer.write_eof()
        await reader.read()  # a connection that closes with bytes unread is reset, and the alert lost

    return answer


def answers(answer: Answer) -> Listens:
    """Return a receiver that answers requests, as it would do if one came."""
    return lambda _: serving(answer)


def after_hello(answer: Answer) -> Listens:
    """Return a receiver that does this in place of its part of a TLS handshake."""

    async def follow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        record = await reader.readexactly(5)
        await reader.readexactly(int.from_bytes(record[3:]))
        await answer(reader, writer)

    return lambda _: serving(follow, at_once=True)


@asynccontextmanager
async def refuses(_: Authorities) -> AsyncIterator[int]:
    """Yield a port at which nothing listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield unused.getsockname()[1]


@asynccontextmanager
async def accepts_nothing(_: Authorities) -> AsyncIterator[int]:
    """Yield a port whose queue of connections is full."""
    with ExitStack() as opened:
        full, *waiting = (opened.enter_context(socket.socket()) for _ in range(5))
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        yield full.getsockname()[1]


@cache
def endpoints() -> list[Endpoint]:
    """Return every endpoint of this catalogue."""
    return [*_names(), *_addresses(), *_ports(), *_certificates(), *_common_tls(), *_handshakes()]


def _names() -> list[Endpoint]:
    here = answers(sends(head(200)))
    return [
        Endpoint(f"has a name {what}", here, error_class, f"http://{label}.{NAME}", hangs=error_class == "timeout")
        for label, what, error_class in (
            ("missing", "that does not exist", "dns"),
            ("empty", "without an address", "dns"),
            ("failing", "whose server fails (SERVFAIL)", "dns"),
            ("refusing", "whose server refuses to answer", "dns"),
            ("mute", "whose server never answers", "dns"),
            ("mute", "whose server does not answer within the endpoint's timeout", "timeout"),
            ("loopback", "of a loopback address", "refused_address"),
            ("private", "of a private address", "refused_address"),
            ("mixed", "of two addresses, one allowed and one private", "refused_address"),
            ("versions", "of two addresses, one allowed and `::1`", "refused_address"),
        )
    ]


def _addresses() -> list[Endpoint]:
    here = answers(sends(head(200)))
    return [
        Endpoint(does, here, "refused_address", origin)
        for does, origin in (
            ("has a private address in place of a name", "http://10.0.0.9"),
            ("has a loopback address in place of a name", "http://127.0.0.9"),
            ("has a loopback address in place of a name, of IPv6", "http://[::1]"),
            ("has an IPv4 address that is not written as four decimal numbers", "http://0x7f.1"),
            ("has a name that is not allowed", "http://elsewhere.example"),
            ("has a scheme that is not allowed", f"ftp://{NAME}"),
        )
    ]


def _ports() -> list[Endpoint]:
    plain = f"http://{NAME}"
    return [
        Endpoint("refuses the connection: nothing listens", refuses, "connection", plain),
        Endpoint("accepts no connection: its queue is full", accepts_nothing, "timeout", plain, hangs=True),
        Endpoint("listens at one of its two addresses", answers(sends(head(200))), None, f"http://two.{NAME}", 200),
    ]


def _certificates() -> list[Endpoint]:
    ended, ahead = {"valid_from": timedelta(days=-2)}, {"valid_from": timedelta(hours=12)}
    return [
        Endpoint("has a good certificate", speaks_tls(certificate()), None, status_code=200),
        *(
            Endpoint(f"has a certificate {what}", speaks_tls(signs), "tls")
            for what, signs in (
                ("that it signed itself", self_signed),
                ("of an unknown authority", unknown_certificate),
                ("that has expired", certificate(**ended, valid_until=timedelta(hours=-1))),
                ("that is not valid yet", certificate(**ahead)),
                ("of another name", certificate(host="elsewhere.test")),
            )
        ),
    ]


def _common_tls() -> list[Endpoint]:
    good, versions = certificate(), ssl.TLSVersion
    no_cipher = speaks_tls(good, versions.TLSv1_2, ciphers="ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0")
    asking = [speaks_tls(good, each, asks_certificate=True) for each in (versions.TLSv1_2, versions.TLSv1_3)]
    return [
        Endpoint("answers by TLS 1.2", speaks_tls(good, versions.TLSv1_2), None, status_code=200),
        Endpoint("speaks TLS 1.0 alone", speaks_tls(good, versions.TLSv1), "tls"),
        Endpoint("speaks TLS 1.1 alone", speaks_tls(good, versions.TLSv1_1), "tls"),
        Endpoint("has no cipher in common", no_cipher, "tls"),
        Endpoint("asks for a certificate of ours, by TLS 1.2", asking[0], "tls"),
        Endpoint("asks for a certificate of ours, by TLS 1.3", asking[1], "tls"),
        Endpoint("speaks plain HTTP where the URL says https", after_hello(sends(head(400))), "tls"),
    ]


def _handshakes() -> list[Endpoint]:
    half = SERVER_HELLO[:64]
    return [
        Endpoint("closes without a handshake", after_hello(sends()), "connection"),
        Endpoint("closes in the middle of the handshake", after_hello(sends(half)), "connection"),
        Endpoint("resets the connection without a handshake", after_hello(resets), "connection"),
        Endpoint("resets the connection in the middle of the handshake", after_hello(sends(half, then=resets)),
                 "connection"),
        Endpoint("floods the handshake with warnings", after_hello(repeats(WARNING * 1_000)), "tls"),
        *(
            Endpoint(does, after_hello(answer), "timeout", hangs=True)
            for does, answer in (
                ("sends nothing in place of a handshake", waits),
                ("sends half of the handshake, and then nothing", sends(half, then=waits)),
                ("sends the handshake a byte at a time", trickles(SERVER_HELLO)),
                ("floods the handshake with messages without content", repeats(HELLO_REQUESTS)),
            )
        ),
    ]  # fmt: skip
