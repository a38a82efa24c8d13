"""Readiness of services that serve no requests: their partitions, Postgres and Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.error
import urllib.request

import msgspec

from devstack.processes import choose_port
from operations.services.readiness import ServiceReadiness
from operations.services.worker import build_worker, serve_worker
from runtime.settings import Settings
from tests.conftest import MakeTopic
from tests.support.waiting import DEADLINE_SECONDS, wait_until_async


async def test_a_worker_is_ready_once_its_partitions_are_open(settings: Settings, topic: str) -> None:
    """Not before it has joined its group, and not once it has given up."""
    readiness = ServiceReadiness(settings, "writer")
    worker = build_worker(settings, [topic])
    assert set(await readiness.faults()) == {"service"}
    readiness.follow(worker)
    assert set(await readiness.faults()) == {"group"}
    await worker.start()
    try:
        await wait_until_async(lambda: worker.joined, "the group has answered")

        async def ready() -> bool:
            return not await readiness.faults()

        await wait_until_async(ready, "all partitions are open")
        assert len(worker.positions()) == 4
    finally:
        await worker.stop()


async def test_a_service_is_not_ready_while_something_is_away(settings: Settings) -> None:
    """Each is named by itself, and no address is shown."""
    nowhere = f"127.0.0.1:{choose_port(None, set())}"
    lost = msgspec.structs.replace(settings, kafka_bootstrap_servers=nowhere)
    readiness = ServiceReadiness(lost, "writer")
    readiness.own_faults = dict
    assert await readiness.faults() == {"kafka": "KafkaUnavailable"}

    lost = msgspec.structs.replace(settings, database_writer_url=f"postgresql://plant_writer:x@{nowhere}/plant")
    readiness = ServiceReadiness(lost, "writer")
    readiness.own_faults = dict
    assert await readiness.faults() == {"postgres": "DatabaseUnreachable"}
    assert await ServiceReadiness(settings, "embedder", kafka=False).faults() == {"service": "It has not started yet."}


async def test_a_worker_answers_probes_at_its_metrics_address(settings: Settings, make_topic: MakeTopic) -> None:
    """While it has not started, `/readyz` is 503; then 200, until it is told to end."""
    topic = await make_topic()
    port = choose_port(None, set())
    running = msgspec.structs.replace(settings, worker_metrics_address=f"127.0.0.1:{port}")
    serving = asyncio.create_task(serve_worker(running, [topic]))

    def ask() -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=DEADLINE_SECONDS) as answer:
                assert json.loads(answer.read()) == {"status": "ok"}
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    async def ready() -> bool:
        return await asyncio.to_thread(ask) == 200

    try:
        await wait_until_async(ready, "the worker is ready")
    finally:
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
