"""Endpoints in the database: all or nothing, secrets bound to their rows, states and rotations."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import msgspec
import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from database.connector import Database as Connector
from database.connector import connect
from database.errors import ConstraintRefused
from deliveries.endpoint_store import EndpointStore
from deliveries.endpoints import (
    EndpointConfiguration,
    EndpointId,
    EndpointSecrets,
    EndpointStart,
    ReceiverAgreement,
    new_endpoint_id,
)
from deliveries.errors import (
    EndpointStateRefused,
    EndpointTenantRefused,
    TooManyEndpointKeys,
    UnknownEndpoint,
)
from deliveries.signed_request import EndpointKeys
from devstack import sql
from operations.secret_tables import SECRET_TABLES
from runtime.settings import Settings
from signing.ed25519 import PrivateKey
from signing.errors import OtherMasterKey, SecretUnreadable
from signing.hmac_secrets import new_secret
from signing.master_key import MasterKeys
from signing.master_key_rows import change_master_key
from tests.conftest import Database
from tests.support.waiting import wait_until_async

CONFIGURATION = EndpointConfiguration(
    url="https://example.com/hooks",
    event_types=("genesis.agent.*",),
    filter={"rating": [4, 5]},
    description="for tests",
    ordering="per_entity",
    after_dead_letter="block",
    retry_schedule="long",
    rate_per_second=10,
    timeout_seconds=5,
)
SECRETS = EndpointSecrets(
    EndpointKeys(secrets=(bytes(range(24)),), private_keys=(PrivateKey(bytes(32)),)), (("authorization", "Bearer abc"),)
)
START = EndpointStart((0, 5, 2**40), datetime(2026, 1, 2, tzinfo=UTC))


@pytest_asyncio.fixture
async def operator(settings: Settings) -> AsyncIterator[Connector]:
    """plant_operator's connections."""
    made = connect(settings, "operator")
    yield made
    await made.close()


@pytest_asyncio.fixture
async def subscribers(settings: Settings) -> AsyncIterator[Connector]:
    """plant_endpoints' connections: operators change no configuration."""
    made = connect(settings, "endpoints")
    yield made
    await made.close()


@pytest.fixture
def store(operator: Connector, settings: Settings) -> EndpointStore:
    """A store with the master key of the tests."""
    return EndpointStore(operator, MasterKeys(settings))


async def added(store: EndpointStore, secrets_: EndpointSecrets = SECRETS, **changes: Any) -> EndpointId:
    endpoint_id = new_endpoint_id()
    configuration = msgspec.structs.replace(CONFIGURATION, **changes)
    await store.add(endpoint_id, configuration, secrets_, START, tenant="genesis")
    return endpoint_id


async def test_what_is_stored_is_read_back(store: EndpointStore, database: Database) -> None:
    """Configuration, start and secrets are the same again; no secret stands in a row as it is."""
    endpoint_id = await added(store)
    endpoint = await store.find(endpoint_id)
    assert (endpoint.configuration, endpoint.start, endpoint.tenant) == (CONFIGURATION, START, "genesis")
    assert (endpoint.state, endpoint.state_reason, endpoint.custom_header_names) == ("active", None, ("authorization",))
    assert await store.secrets(endpoint_id) == SECRETS
    assert [each.id for each in await store.all()] == [endpoint_id]
    rows = sql.value(database.owner_url, "SELECT string_agg(t::text, ' ') FROM endpoint_secrets AS t")
    for secret in (SECRETS.keys.secrets[0], bytes(32), b"Bearer abc"):
        assert secret.hex() not in str(rows)
    with pytest.raises(UnknownEndpoint):
        await store.find(uuid4())


async def test_an_endpoint_is_stored_with_all_of_its_secrets_or_not_at_all(
    store: EndpointStore, database: Database
) -> None:
    """Where the last secret can't be stored, no row of the endpoint is left."""
    too_long = EndpointSecrets(SECRETS.keys, (("x-long", "a" * 70_000),))
    with pytest.raises(ConstraintRefused):
        await added(store, too_long)
    for table in ("endpoints", "endpoint_secrets"):
        assert sql.value(database.owner_url, f"SELECT count(*) FROM {table}") == 0


async def test_another_tenant_is_refused_by_name(store: EndpointStore, database: Database) -> None:
    """By the store, and by the table."""
    with pytest.raises(EndpointTenantRefused) as refused:
        await store.add(new_endpoint_id(), CONFIGURATION, SECRETS, START, tenant="acme")
    assert "'acme'" in str(refused.value)
    await added(store)
    with pytest.raises(Exception, match="endpoints_governance_agent_id_check"):
        # Without the trigger that keeps an endpoint's tenant, so that the table's own check is seen.
        sql.execute(
            database.superuser_url,
            ["SET session_replication_role = replica", "UPDATE endpoints SET governance_agent_id = 'acme'"],
        )


@pytest.mark.parametrize(
    "change",
    [
        "ciphertext = (SELECT ciphertext FROM endpoint_secrets WHERE kind = 'v1a' ORDER BY id LIMIT 1)",
        "(nonce, ciphertext) = (SELECT nonce, ciphertext FROM endpoint_secrets"
        " WHERE kind = 'v1' AND endpoint_id = '{other}')",
        "id = gen_random_uuid()",
        "kind = 'headers'",
        "endpoint_id = '{other}'",
    ],
)
async def test_a_secret_in_another_row_does_not_open(store: EndpointStore, database: Database, change: str) -> None:
    """Neither under another kind nor under another endpoint, whose secret would sign in its name."""
    endpoint_id, other = await added(store), await added(store, EndpointSecrets(SECRETS.keys))
    sql.execute(
        database.superuser_url,
        [
            "SET session_replication_role = replica",
            f"DELETE FROM endpoint_secrets WHERE kind = 'headers' AND endpoint_id = '{endpoint_id}'",
            f"UPDATE endpoint_secrets SET {change.format(other=other)} WHERE kind = 'v1'"
            f" AND endpoint_id = '{endpoint_id}'",
        ],
    )
    with pytest.raises(SecretUnreadable):
        await store.secrets(other if change.startswith("endpoint_id") else endpoint_id)


async def test_each_action_needs_its_state(store: EndpointStore) -> None:
    """Pause and resume, disable and enable; an action of another state is refused, and changes nothing."""
    endpoint_id = await added(store)
    for action, state in (("pause", "paused"), ("resume", "active"), ("pause", "paused"), ("disable", "disabled"),
                          ("enable", "active")):  # fmt: skip
        await store.change_state(endpoint_id, action, f"because of {action}")  # type: ignore[arg-type]
        endpoint = await store.find(endpoint_id)
        assert (endpoint.state, endpoint.state_reason) == (state, f"because of {action}")
    for action in ("resume", "enable"):
        with pytest.raises(EndpointStateRefused, match="is active"):
            await store.change_state(endpoint_id, action, "again")  # type: ignore[arg-type]
    assert (await store.find(endpoint_id)).state_reason == "because of enable"
    with pytest.raises(UnknownEndpoint):
        await store.change_state(uuid4(), "pause", "unknown")


async def test_a_removed_endpoint_has_no_secrets_and_stays_removed(store: EndpointStore, database: Database) -> None:
    """Its row stays, for the deliveries that it had; nobody brings it back, the owner neither."""
    endpoint_id, other = await added(store), await added(store)
    await store.change_state(endpoint_id, "remove", "no longer wanted")
    assert (await store.find(endpoint_id)).state == "removed"
    count = f"SELECT count(*) FROM endpoint_secrets WHERE endpoint_id = '{endpoint_id}'"
    assert sql.value(database.owner_url, count) == 0
    assert await store.secrets(other) == SECRETS
    for action in ("enable", "resume", "remove", "pause"):
        with pytest.raises(EndpointStateRefused):
            await store.change_state(endpoint_id, action, "again")  # type: ignore[arg-type]
    with pytest.raises(EndpointStateRefused):
        await store.rotate(endpoint_id, "v1", new_secret(), None, timedelta(hours=1))
    for statement in ("UPDATE endpoints SET state = 'active'", "DELETE FROM endpoints", "TRUNCATE endpoints CASCADE"):
        with pytest.raises(Exception, match="removed"):
            sql.execute(database.owner_url, [statement])


async def test_of_two_changes_at_once_one_is_refused(settings: Settings, subscribers: Connector) -> None:
    """Each says how all is to be: the second would undo the first one, which it has not seen, headers and all."""
    store = EndpointStore(subscribers, MasterKeys(settings), "genesis")
    plain = msgspec.structs.replace(CONFIGURATION, handshake=True)
    endpoint_id, agreed = new_endpoint_id(), ReceiverAgreement(datetime(2026, 1, 2, tzinfo=UTC), 60)
    await store.add(endpoint_id, plain, SECRETS, START, tenant="genesis", agreement=agreed)
    seen = await store.find(endpoint_id)
    await store.configure(seen, msgspec.structs.replace(plain, timeout_seconds=3), agreed, (("x-new", "1"),))
    with pytest.raises(EndpointStateRefused, match="changed meanwhile"):
        await store.configure(seen, msgspec.structs.replace(plain, description="other"), agreed, ())
    with pytest.raises(EndpointStateRefused, match="changed meanwhile"):
        await store.agree(seen, ReceiverAgreement(agreed.at, 1))
    found = await store.find(endpoint_id)
    assert (found.configuration.timeout_seconds, found.configuration.description) == (3, "for tests")
    assert (found.agreement, found.custom_header_names) == (agreed, ("x-new",))
    await store.agree(found, ReceiverAgreement(agreed.at, 2))
    assert (await store.find(endpoint_id)).agreement == ReceiverAgreement(agreed.at, 2)


async def test_where_an_endpoint_began_never_changes(store: EndpointStore, database: Database) -> None:
    """A later start would lose events; no service may, and no owner does so by mistake."""
    await added(store)
    with pytest.raises(Exception, match="keeps its id, its tenant and its start"):
        sql.execute(database.owner_url, ["UPDATE endpoints SET start_offsets = '{9}'"])
    with pytest.raises(Exception, match="permission denied"):
        sql.execute(database.operator_url, ["UPDATE endpoints SET start_offsets = '{9}'"])


async def test_both_keys_sign_while_a_rotation_is_under_way(store: EndpointStore, database: Database) -> None:
    """The newest first; the other key of the scheme ends with the overlap, and keys of other schemes stay."""
    endpoint_id, new = await added(store), new_secret()
    await store.rotate(endpoint_id, "v1", new, None, timedelta(hours=1))
    both = await store.secrets(endpoint_id)
    assert both.keys.secrets == (new, SECRETS.keys.secrets[0])
    assert both.keys.private_keys == SECRETS.keys.private_keys
    listed = {(key.kind, key.expires_at is None) for key in await store.keys([endpoint_id])}
    assert listed == {("v1", True), ("v1", False), ("v1a", True)}
    with pytest.raises(TooManyEndpointKeys):
        await store.rotate(endpoint_id, "v1", new_secret(), None, timedelta(hours=1))
    key = PrivateKey(bytes([1]) * 32)
    await store.rotate(endpoint_id, "v1a", key.seed, key.public_key, timedelta(0))
    assert (await store.secrets(endpoint_id)).keys.private_keys == (key,)
    sql.execute(database.owner_url, ["UPDATE endpoint_secrets SET expires_at = now() WHERE expires_at > now()"])
    assert (await store.secrets(endpoint_id)).keys.secrets == (new,)
    await store.rotate(endpoint_id, "v1", new_secret(), None, timedelta(hours=1))
    assert sql.value(database.owner_url, "SELECT count(*) FROM endpoint_secrets WHERE kind = 'v1'") == 2


async def test_of_two_rotations_at_once_one_is_refused(
    store: EndpointStore, operator: Connector, database: Database
) -> None:
    """Otherwise the key that the subscriber has would have ended at once. Both have begun before either goes on."""
    endpoint_id = await added(store)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with operator.transaction() as connection:
        await connection.execute(text("SELECT FROM endpoints FOR UPDATE"))
        rotations = [
            asyncio.create_task(store.rotate(endpoint_id, "v1", new_secret(), None, timedelta(hours=1)))
            for _ in range(2)
        ]
        await wait_until_async(
            lambda: sql.value(database.superuser_url, waiting) == 2 or any(each.done() for each in rotations),
            "two rotations that wait",
        )
    done = await asyncio.gather(*rotations, return_exceptions=True)
    assert sorted(type(each).__name__ for each in done) == ["NoneType", "TooManyEndpointKeys"]
    assert SECRETS.keys.secrets[0] in (await store.secrets(endpoint_id)).keys.secrets


async def test_a_rotation_ends_no_key_of_another_endpoint(store: EndpointStore) -> None:
    """Nor one of another scheme."""
    endpoint_id, other = await added(store), await added(store)
    await store.rotate(endpoint_id, "v1", new_secret(), None, timedelta(0))
    ends = {(key.endpoint_id, key.kind): key.expires_at for key in await store.keys([endpoint_id, other])}
    assert ends == dict.fromkeys([(endpoint_id, "v1"), (endpoint_id, "v1a"), (other, "v1"), (other, "v1a")])


async def test_an_expiry_only_comes_nearer(store: EndpointStore, database: Database) -> None:
    """A key that ended, or is about to, signs no longer than was said."""
    endpoint_id = await added(store)
    await store.rotate(endpoint_id, "v1", new_secret(), None, timedelta(hours=1))
    for later in ("NULL", "expires_at + interval '1 s'"):
        with pytest.raises(Exception, match="and no later"):
            sql.execute(
                database.operator_url,
                [f"UPDATE endpoint_secrets SET expires_at = {later} WHERE expires_at IS NOT NULL"],
            )


async def test_a_change_of_the_master_key_covers_endpoints(operator: Connector, settings: Settings) -> None:
    """Keys and headers open under the new master key alone, and a wrong previous one changes nothing."""
    store = EndpointStore(operator, MasterKeys(settings))
    endpoint_id = await added(store)
    new = base64.b64encode(secrets.token_bytes(32)).decode()
    both = msgspec.structs.replace(settings, master_key=new, master_key_previous=settings.master_key)
    wrong = msgspec.structs.replace(both, master_key_previous=base64.b64encode(bytes(32)).decode())
    with pytest.raises(OtherMasterKey, match="3 secrets open under neither"):
        await change_master_key(operator, MasterKeys(wrong), SECRET_TABLES, execute=True)
    assert await store.secrets(endpoint_id) == SECRETS
    assert (await change_master_key(operator, MasterKeys(both), SECRET_TABLES, execute=True)).secret_count == 3
    alone = EndpointStore(operator, MasterKeys(msgspec.structs.replace(settings, master_key=new)))
    assert await alone.secrets(endpoint_id) == SECRETS
    with pytest.raises(SecretUnreadable):
        await store.secrets(endpoint_id)
    with pytest.raises(OtherMasterKey):
        await added(store)


async def test_a_worker_reads_endpoints_without_their_secrets(settings: Settings, store: EndpointStore) -> None:
    """A dispatcher, which connects as workers do, matches events and signs nothing."""
    endpoint_id = await added(store)
    workers = connect(settings, "writer")
    try:
        strange = EndpointStore(workers, MasterKeys(settings))
        assert [each.id for each in await strange.all()] == [endpoint_id]
        with pytest.raises(DBAPIError, match="permission denied"):
            await strange.secrets(endpoint_id)
    finally:
        await workers.close()


@pytest.mark.parametrize("role", ["api", "ingress", "auditor", "embedder"])
async def test_no_other_service_reads_endpoints(settings: Settings, role: Any, store: EndpointStore) -> None:
    """Neither rows nor secrets."""
    await added(store)
    others = connect(settings, role)
    try:
        strange = EndpointStore(others, MasterKeys(settings))
        for attempt in (strange.all(), strange.secrets(uuid4())):
            with pytest.raises(DBAPIError, match="permission denied"):
                await attempt
    finally:
        await others.close()
