"""A broker that is frozen or cut off must not hold up what the other brokers would answer.

aiokafka 0.14 asks one broker at random for metadata, and waits out its whole request timeout where that broker is
silent, though the answer would be that another one leads now. While it opens a connection to a silent broker, it opens
none to any other. Whatever may go to any broker goes to the silent one again and again. And one that refuses
connections is dialled, and logged, dozens of times a second.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import defaultdict
from contextlib import nullcontext
from typing import Any, Final

from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.errors import KafkaError
from aiokafka.protocol.metadata import MetadataRequest

OPEN_SECONDS: Final = 5.0
"""How long a connection may take until it can be used, TLS and the login included."""

ASK_ANOTHER_SECONDS: Final = 0.5
"""A broker that has not answered for so long is no longer waited for alone: the next one is asked, too."""

DIAL_AGAIN_SECONDS: Final = 0.25
"""A broker that could not be reached is tried again after so long, however often it is asked for."""

AVOID_SECONDS: Final = 10.0
"""A broker that was found silent or away is left out for so long wherever any other will do."""

BOOTSTRAP: Final = "bootstrap"


def skip_unresponsive_brokers(client: AIOKafkaClient) -> None:
    """Change a client that has not been started yet, so that silent brokers are passed over."""
    patient = _Patient(client)
    client._get_conn_lock_value = nullcontext()  # one lock for all brokers; `get_conn` has one for each
    client._get_conn = patient.get_conn
    client._metadata_update = patient.update_metadata
    client.bootstrap = patient.bootstrap
    client.get_random_node = patient.any_node


class _Patient:
    """What takes the place of a client's own methods."""

    def __init__(self, client: AIOKafkaClient) -> None:
        self._client = client
        self._get_conn = client._get_conn
        self._bootstrap = client.bootstrap
        self._opening: defaultdict[tuple[object, object], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._avoid_until: dict[object, float] = {}
        self._refused_at: dict[object, float] = {}

    async def bootstrap(self) -> None:
        """Go from address to address, but wait at none for as long as for an answer to a request."""
        kept = self._client._request_timeout_ms
        self._client._request_timeout_ms = min(kept, int(OPEN_SECONDS * 1000))
        try:
            await self._bootstrap()
        finally:
            self._client._request_timeout_ms = kept

    async def get_conn(self, node_id: object, *, group: object = ConnectionGroup.DEFAULT, no_hint: bool = False) -> Any:
        """A connection to a broker; None where there is none and none can be opened in time."""
        connection = self._client._conns.get((node_id, group))
        if connection is not None and connection.connected():
            return connection
        connection = None
        try:
            async with asyncio.timeout(OPEN_SECONDS), self._opening[node_id, group]:
                await asyncio.sleep(self._refused_at.get(node_id, 0.0) + DIAL_AGAIN_SECONDS - time.monotonic())
                connection = await self._get_conn(node_id, group=group, no_hint=no_hint)
        except TimeoutError:
            self._client.force_metadata_update()
        if connection is None:
            self._refused_at[node_id] = time.monotonic()
            self._avoid(node_id)
        else:
            self._avoid_until.pop(node_id, None)
        return connection

    async def update_metadata(self, cluster: Any, topics: Any) -> bool:
        """Ask one broker, and after a moment one more, and so on; the first answer counts."""
        request = MetadataRequest(list(topics) if topics else None)
        to_ask = self._nodes()
        asked: dict[asyncio.Task[Any], object] = {}
        try:
            while to_ask or asked:
                if to_ask:
                    node_id = to_ask.pop(0)
                    asked[asyncio.create_task(self._ask(node_id, request))] = node_id
                patience = ASK_ANOTHER_SECONDS if to_ask else None
                done, _ = await asyncio.wait(asked, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    del asked[task]
                    if (metadata := task.result()) is not None:
                        for node_id in asked.values():
                            self._avoid(node_id)
                        return self._take(cluster, metadata)
        finally:
            for task in asked:
                task.cancel()
        cluster.failed_update(None)
        return False

    def any_node(self) -> int | None:
        """A broker at random, of those that are not known to be silent while there are any."""
        known = [broker.nodeId for broker in self._client.cluster.brokers()]
        lively = [node_id for node_id in known if not self._is_avoided(node_id)]
        return secrets.choice(lively or known) if known else None

    async def _ask(self, node_id: object, request: MetadataRequest) -> Any:
        connection = await self._client._get_conn(node_id)
        if connection is None:
            return None
        try:
            return await connection.send(request)
        except (KafkaError, TimeoutError):
            return None

    def _take(self, cluster: Any, metadata: Any) -> bool:
        if not metadata.brokers:  # a topic's creation is under way: there is nothing to go by yet
            return False
        cluster.update_metadata(metadata)
        first = (BOOTSTRAP, ConnectionGroup.DEFAULT)
        if first in self._client._conns and self._client.cluster.brokers():
            self._client._conns.pop(first).close()
        return True

    def _nodes(self) -> list[object]:
        """Every broker that may be asked, in random order, those to be avoided last."""
        nodes: list[object] = [broker.nodeId for broker in self._client.cluster.brokers()]
        if (BOOTSTRAP, ConnectionGroup.DEFAULT) in self._client._conns:
            nodes.append(BOOTSTRAP)
        random.shuffle(nodes)
        return sorted(nodes, key=self._is_avoided)

    def _avoid(self, node_id: object) -> None:
        self._avoid_until[node_id] = time.monotonic() + AVOID_SECONDS

    def _is_avoided(self, node_id: object) -> bool:
        return self._avoid_until.get(node_id, 0.0) > time.monotonic()
