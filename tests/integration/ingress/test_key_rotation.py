"""Changes of keys and policies reach a running ingress process, and changing keys refuses nobody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest_asyncio

from benchmarks.rotation import Sign, SteadyLoad, new_signer
from database.connector import connect
from ingress.keys import Keyring, KeyStore
from ingress.producers import PolicyChanges, ProducerStore
from runtime.clock import SystemClock
from runtime.settings import Settings
from signing.master_key import MasterKey
from signing.signatures import Scheme
from tests.support.ingress_process import Running, started
from tests.support.webhooks import add_key

REACHED_SECONDS = 2.0
DEADLINE_SECONDS = 30.0
RATE = 200
OVERLAP = timedelta(seconds=3)


@pytest_asyncio.fixture
async def running(settings: Settings, tmp_path: Path) -> AsyncIterator[Running]:
    """An ingress process, and a key of the producer genesis that it knows."""
    async with started(settings, tmp_path) as process:
        yield process


async def seconds_until(reached: Callable[[], Awaitable[bool]]) -> float:
    """How long it takes."""
    begun = time.monotonic()
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not await reached():
            await asyncio.sleep(0.02)
    return time.monotonic() - begun


async def test_no_request_is_refused_while_keys_are_changed(running: Running) -> None:
    """At 200 requests a second: both schemes, with both signatures meanwhile or not, and past the old key's end."""
    signers: dict[Scheme, Sign] = {}
    for scheme in ("v1", "v1a"):
        signers[scheme] = await new_signer(running.settings, "rotating", scheme, None)
    load = SteadyLoad(running.url, RATE, signers["v1"], connections=4)
    await seconds_until(lambda: answered(load, 200, signers["v1"]))
    await seconds_until(lambda: answered(load, 200, signers["v1a"]))
    async with load.running():
        for scheme, signs_both in (("v1", True), ("v1a", False)):
            old = signers[scheme]
            load.signers = [old]
            new = await new_signer(running.settings, "rotating", scheme, OVERLAP)
            load.signers = [new, old] if signs_both else [old]
            await seconds_until(lambda new=new: answered(load, 200, new))
            load.signers = [new]
            await seconds_until(lambda old=old: answered(load, 401, old))
    assert load.answers["200"] > RATE
    assert load.refused == 0, load.answers


async def answered(load: SteadyLoad, status: int, signer: Sign) -> bool:
    return await load.post(signer) == status


async def test_a_revoked_key_is_refused_within_two_seconds(running: Running) -> None:
    """Revoked in the database, it is refused by a process that was using it; so it went for most of several keys."""
    database = connect(running.settings, "api")
    store = KeyStore(database, MasterKey(running.settings))
    load, took = SteadyLoad(running.url, 1), []
    for scheme in ("v1", "v1a", "v1"):
        signer = await new_signer(running.settings, "leaked", scheme, None)  # type: ignore[arg-type]  # the two schemes
        took.append(await seconds_until(lambda signer=signer: answered(load, 200, signer)))
        (key,) = [key for key in await store.all() if key.producer == "leaked" and key.revoked_at is None]
        await store.revoke(key.id)
        took.append(await seconds_until(lambda signer=signer: answered(load, 401, signer)))
    await database.close()
    assert sorted(took)[len(took) // 2] < REACHED_SECONDS, took


async def test_a_policy_reaches_a_running_keyring_within_two_seconds(settings: Settings) -> None:
    """Disabling and limiting a producer are read beside its keys."""
    await add_key(settings)
    database = connect(settings, "api")
    store, keyring = ProducerStore(database), Keyring(KeyStore(database, MasterKey(settings)), SystemClock())
    keyring.start()

    async def loaded() -> bool:
        return keyring.loaded

    async def disabled() -> bool:
        return keyring.policy("genesis").disabled

    async def limited() -> bool:
        return keyring.policy("genesis").burst == 7

    await seconds_until(loaded)
    await store.disable("genesis")
    took = [await seconds_until(disabled)]
    await store.set("genesis", PolicyChanges(burst=7))
    took.append(await seconds_until(limited))
    await keyring.stop()
    await database.close()
    assert max(took) < REACHED_SECONDS, took
