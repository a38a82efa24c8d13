"""An external registry's ids: which can be used, what the codec does with them, and peers that answer badly."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from runtime.errors import ConfigurationError
from runtime.settings import Settings, load_settings
from schemas import codec, registry_client
from schemas.batch_decoder import decode_batch
from schemas.errors import RegistryUnreachable, SchemaCheckFailed, Undecodable, UnknownSchema
from schemas.events import AgentOnboarded, AgentRated
from schemas.examples import examples
from schemas.external_registry import ExternalSchemaId, activate_registry, refuse_clashes, register_missing, render_ids
from schemas.registry import OWN_IDS, Registry, bundled, next_version, subject
from tests.support.waiting import DEADLINE_SECONDS

RATED = examples()["genesis.agent.rated"]
VERSION = bundled().current(AgentRated)


@pytest.fixture(autouse=True)
def _bundled_again() -> Iterator[None]:
    """Each test leaves the process with the bundled ids."""
    yield
    codec.activate(None)


def entry(external_id: int, **changes: object) -> ExternalSchemaId:
    """The line of the ids file that gives AgentRated this id."""
    line = ExternalSchemaId(external_id, VERSION.id, VERSION.subject, VERSION.version, VERSION.sha256)
    return msgspec.structs.replace(line, **changes)


def with_settings(**changes: object) -> Settings:
    return msgspec.structs.replace(load_settings({"PLANT_HOME": "/nonexistent"}), **changes)


def test_nothing_happens_without_an_external_registry() -> None:
    """Without its settings the very bundled registry stays in use."""
    assert activate_registry(with_settings()) is bundled() is codec.active_registry()


def test_the_codec_reads_both_ids_and_writes_the_external_one() -> None:
    """Records with the bundled id stay readable, by value and by block, while new ones carry the external id."""
    before = codec.encode(RATED)
    codec.activate(Registry(bundled().versions, external_ids={140: VERSION.id}, written={VERSION.id: 140}))
    after = codec.encode(RATED)
    assert (before[1:5], after[1:5]) == (VERSION.id.to_bytes(4, "big"), (140).to_bytes(4, "big"))
    assert before[5:] == after[5:]
    assert codec.decode(before) == codec.decode(after) == RATED
    decoded, rejected = decode_batch([before, after] * 30, "genesis.events")
    assert [len(found.rows) for found in decoded] == [60]
    assert rejected == []


def test_the_ids_file_alone_is_enough_to_read(tmp_path: Path) -> None:
    """With the file and no registry, records with external ids are read; new ones carry bundled ids."""
    file = tmp_path / "ids.json"
    file.write_text(render_ids([entry(140)]))
    value = codec.WIRE_PREFIX.pack(0, 140) + codec.encode(RATED)[5:]
    with pytest.raises(Undecodable):
        codec.decode(value)
    activate_registry(with_settings(schema_ids_file=str(file)))
    assert codec.decode(value) == RATED
    assert codec.encode(RATED)[1:5] == VERSION.id.to_bytes(4, "big")


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([entry(2)], "one of Plant's own"),
        ([entry(99)], "one of Plant's own"),
        ([entry(2**30)], "one of Plant's own"),
        ([entry(0)], "does not fit"),
        ([entry(2**31)], "does not fit"),
        ([entry(140), entry(140, own_id=4)], "another schema"),
        ([entry(140, sha256="0" * 64)], "another schema"),
        ([entry(140, own_id=77)], "another schema"),
    ],
)
def test_ids_with_two_meanings_are_refused(entries: list[ExternalSchemaId], why: str) -> None:
    """An external id must never be one that a release of Plant gives, and means one locked schema."""
    with pytest.raises(SchemaCheckFailed, match="can't be used") as refused:
        refuse_clashes(entries)
    assert why in refused.value.why
    assert refused.value.exit_code == 3


def test_one_id_never_stands_for_two_schemas() -> None:
    """Two lines of the file with one id are refused, though each is right by itself."""
    other = bundled().current(AgentOnboarded)
    line = ExternalSchemaId(140, other.id, other.subject, other.version, other.sha256)
    with pytest.raises(SchemaCheckFailed) as refused:
        refuse_clashes([entry(140), line])
    assert refused.value.why == "id 140 stands for two schemas."


def test_the_registry_is_activated_again_after_another(tmp_path: Path) -> None:
    """A second call gives the same registry, unless the codec has another one by then."""
    file = tmp_path / "ids.json"
    file.write_text(render_ids([entry(140)]))
    settings = with_settings(schema_ids_file=str(file))
    first = activate_registry(settings)
    assert activate_registry(settings) is first
    codec.activate(None)
    assert activate_registry(settings) is codec.active_registry() is not bundled()
    assert codec.active_registry().get(140) is not None


def test_good_ids_are_accepted() -> None:
    """The bundled id itself, and any id outside Plant's own ranges; a schema may have several."""
    refuse_clashes([entry(VERSION.id), entry(100), entry(140), entry(2**30 - 1)])


def test_new_bundled_ids_stay_in_their_ranges() -> None:
    """After 99 Plant's ids go on at 2^30, which no registry that counts reaches."""
    last = msgspec.structs.replace(VERSION, id=99)
    assert next_version(Registry([VERSION, last]), AgentRated).id == OWN_IDS[1].start
    assert next_version(Registry([msgspec.structs.replace(VERSION, id=2**30)]), AgentRated).id == 2**30 + 1
    assert next_version(bundled(), AgentRated).id == max(version.id for version in bundled().versions) + 1
    assert subject(AgentRated) == VERSION.subject


@pytest.mark.parametrize("content", [None, "", "[", '[{"id": 1}]', "{}"])
def test_a_bad_ids_file_is_named(tmp_path: Path, content: str | None) -> None:
    """An absent or broken ids file stops the process with exit code 2."""
    file = tmp_path / "ids.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigurationError, match=r"ids\.json"):
        activate_registry(with_settings(schema_ids_file=str(file)))


@contextmanager
def peer(answer: bytes) -> Iterator[str]:
    """Something that listens and says this to whoever connects; empty: nothing at all."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)

        def serve() -> None:
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(5)
                    if not answer:
                        stop.wait(DEADLINE_SECONDS)
                        continue
                    connection.recv(65536)
                    try:
                        connection.sendall(answer)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://user:s3cret@127.0.0.1:{listener.getsockname()[1]}/apis/ccompat/v7"
        finally:
            stop.set()
            thread.join()


def http(status: str, body: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (status.encode(), len(body), body)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (http("500 Oh", b"{}"), "500"),
        (http("401 No", b"{}"), "401"),
        (http("302 There", b"{}"), "302"),
        (http("200 OK", b"<html>"), "not JSON"),
        (http("200 OK", b'{"a": 1}'), "no schema registry"),
        (http("404 Not Found", b'{"error_code": 404}'), "no schema registry"),
        (http("200 OK", b'"' + b"x" * 1_200_000 + b'"'), "too long"),
        (b"not http at all\r\n\r\n", "ProtocolError"),
        (b"", "Timeout"),
    ],
    ids=["500", "401", "redirect", "html", "other-json", "other-404", "endless", "garbage", "silent"],
)
def test_a_peer_that_is_no_registry_is_named(answer: bytes, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever answers, or does not, the process ends with exit code 4 and says why, without the password."""
    monkeypatch.setattr(registry_client, "REGISTRY_REQUEST_TIMEOUT_SECONDS", 0.5)
    with peer(answer) as url, pytest.raises(RegistryUnreachable) as failed:
        activate_registry(with_settings(schema_registry_url=url))
    assert why in failed.value.why
    assert "s3cret" not in str(failed.value)
    assert failed.value.exit_code == 4
    assert codec.active_registry() is bundled()


def test_nobody_there_is_exit_code_4() -> None:
    """A port where nobody listens is unreachable; another scheme is a wrong setting."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(RegistryUnreachable, match="does not answer"):
            activate_registry(with_settings(schema_registry_url=address))
    with pytest.raises(ConfigurationError, match="PLANT_SCHEMA_REGISTRY_URL"):
        register_missing("ftp://registry", None)


@pytest.mark.parametrize("external_ids", [{}, {140: VERSION.id}])
def test_an_id_that_the_ids_file_lacks_may_be_a_later_releases(external_ids: dict[int, int]) -> None:
    """With an external registry a newer Plant's schema may have any positive id; none else is a schema's."""
    codec.activate(Registry(bundled().versions, external_ids=external_ids))
    for schema_id in (99, 141, 2**30 - 1):
        with pytest.raises(UnknownSchema):
            codec.decode(codec.WIRE_PREFIX.pack(0, schema_id) + b"anything")
    for schema_id in (0, -1):
        with pytest.raises(Undecodable) as raised:
            codec.decode(codec.WIRE_PREFIX.pack(0, schema_id) + b"anything")
        assert not isinstance(raised.value, UnknownSchema)
