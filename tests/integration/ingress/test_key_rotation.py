"""Changes of keys and policies reach a running ingress process, and changing keys refuses nobody."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest_asyncio
from sqlalchemy import text

from database.connector import connect
from ingress.keys import REFRESH_SECONDS, Keyring, KeyStore
from ingress.producers import PolicyChanges, ProducerStore
from runtime.clock import SystemClock
from runtime.settings import Settings
from signing.master_key import MasterKeys
from signing.signatures import Scheme
from tests.support.ingress_process import Running, started
from tests.support.steady_load import Sign, SteadyLoad, new_signer
from tests.support.waiting import wait_until_async
from tests.support.webhooks import add_key

REACHED_SECONDS = 2.0
"""What the documents promise for a change of a key or a policy."""
RATE = 200
CONNECTIONS = 4
OVERLAP = timedelta(hours=3)
EXPIRE = text("""
    UPDATE webhook_signatures SET expires_at = now()
    WHERE producer = 'rotating' AND scheme = :scheme AND expires_at IS NOT NULL
""")


@pytest_asyncio.fixture
async def running(settings: Settings, tmp_path: Path) -> AsyncIterator[Running]:
    """An ingress process, and a key of the producer genesis that it knows."""
    async with started(settings, tmp_path) as process:
        yield process


async def test_no_request_is_refused_while_keys_are_changed(running: Running) -> None:
    """At 200 requests a second: both schemes, with both signatures meanwhile or not, and past the old key's end."""
    signers: dict[Scheme, Sign] = {}
    for scheme in ("v1", "v1a"):
        signers[scheme] = await new_signer(running.settings, "rotating", scheme, None)
    load = SteadyLoad(running.url, RATE, signers["v1"], connections=CONNECTIONS)
    await wait_until_async(lambda: answered(load, 200, signers["v1"]), "the key is known")
    await wait_until_async(lambda: answered(load, 200, signers["v1a"]), "the key is known")
    async with load.running():
        for scheme, signs_both in (("v1", True), ("v1a", False)):
            old = signers[scheme]
            load.signers = [old]
            new = await new_signer(running.settings, "rotating", scheme, OVERLAP)
            load.signers = [new, old] if signs_both else [old]
            await wait_until_async(lambda new=new: answered(load, 200, new), "the new key is known")
            load.signers = [new]
            sent = load.answers.total() + 2 * CONNECTIONS
            await wait_until_async(lambda sent=sent: load.answers.total() > sent, "no request by the old key is left")
            await expire_all_but_the_last(running.settings, scheme)
            await wait_until_async(lambda old=old: answered(load, 401, old), "the old key is refused")
        await wait_until_async(lambda: load.answers["200"] > RATE, "requests are answered meanwhile")
    assert load.refused == 0, load.answers


async def expire_all_but_the_last(settings: Settings, scheme: Scheme) -> None:
    """End an overlap of hours now, whatever the machine's pace."""
    database = connect(settings, "operator")
    try:
        async with database.transaction() as connection:
            await connection.execute(EXPIRE, {"scheme": scheme})
    finally:
        await database.close()


async def answered(load: SteadyLoad, status: int, signer: Sign) -> bool:
    return await load.post(signer) == status


async def test_a_revoked_key_is_refused_by_a_running_process(running: Running) -> None:
    """Revoked in the database, it is refused by a process that was using it; so it went for most of several keys."""
    database = connect(running.settings, "operator")
    store = KeyStore(database, MasterKeys(running.settings))
    load = SteadyLoad(running.url, 1)
    for scheme in ("v1", "v1a", "v1"):
        signer = await new_signer(running.settings, "leaked", scheme, None)  # type: ignore[arg-type]  # the two schemes
        await wait_until_async(lambda signer=signer: answered(load, 200, signer), "the key is known")
        (key,) = [key for key in await store.all() if key.producer == "leaked" and key.revoked_at is None]
        await store.revoke(key.id)
        await wait_until_async(lambda signer=signer: answered(load, 401, signer), "the revoked key is refused")
    await database.close()


async def test_a_policy_reaches_a_running_keyring(settings: Settings) -> None:
    """Disabling and limiting a producer are read with its keys."""
    await add_key(settings)
    database = connect(settings, "operator")
    store, keyring = ProducerStore(database), Keyring(KeyStore(database, MasterKeys(settings)), SystemClock())
    keyring.start()
    await wait_until_async(lambda: keyring.loaded, "the keys are loaded")
    await store.disable("genesis")
    await wait_until_async(lambda: keyring.policy("genesis").disabled, "the producer is disabled")
    await store.set("genesis", PolicyChanges(burst=7))
    await wait_until_async(lambda: keyring.policy("genesis").burst == 7, "the burst is changed")
    await keyring.stop()
    await database.close()


def test_keys_are_read_often_enough_for_the_promise() -> None:
    """A keyring reads the database twice within the two seconds in which a change has to reach it."""
    assert 2 * REFRESH_SECONDS <= REACHED_SECONDS
