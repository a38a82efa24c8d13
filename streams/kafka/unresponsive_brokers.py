"""A client that skips unresponsive brokers: one that is frozen or cut off delays nothing that others would answer.

aiokafka 0.14 asks one broker at random for metadata, and waits out its whole request timeout where that broker is
unresponsive, though the answer would be that another one leads now. While it opens a connection to an unresponsive
broker, it opens none to any other. Requests that may go to any broker go to the unresponsive one again and again. And
it connects to a broker that refuses connections, and logs that, dozens of times a second. A request that is under way
to a broker which the cluster has given up waits out its whole timeout, while another broker leads already.
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

from streams.kafka.refused_connections import raising_refusals
from streams.kafka.repair import Repair

REPAIR: Final = Repair(
    name="unresponsive brokers",
    needed_by="aiokafka 0.14.0",
    reason="Metadata is asked of one broker at random for the whole request timeout, one lock serializes the opening of"
    " all connections, and a broker that refuses connections is tried dozens of times a second.",
    until="aiokafka asks the next broker before the request timeout, has a lock a broker, and backs off.",
    touches=(
        "aiokafka.client:AIOKafkaClient._conns",
        "aiokafka.client:AIOKafkaClient._get_conn(node_id, group, no_hint)",
        "aiokafka.client:AIOKafkaClient._get_conn_lock_value",
        "aiokafka.client:AIOKafkaClient._metadata_update(cluster_metadata, topics)",
        "aiokafka.client:AIOKafkaClient._request_timeout_ms",
        "aiokafka.client:AIOKafkaClient.bootstrap()",
        "aiokafka.client:AIOKafkaClient.force_metadata_update()",
        "aiokafka.client:AIOKafkaClient.get_random_node()",
        "aiokafka.client:ConnectionGroup.DEFAULT",
        "aiokafka.cluster:ClusterMetadata.brokers()",
        "aiokafka.cluster:ClusterMetadata.failed_update(exception)",
        "aiokafka.cluster:ClusterMetadata.update_metadata(metadata)",
    ),
)

CONNECT_TIMEOUT_SECONDS: Final = 5.0
"""How long a connection may take until it can be used, TLS and the login included."""

HEDGE_DELAY_SECONDS: Final = 0.5
"""When a broker has not answered a request for metadata after this, the next one is asked as well."""

RECONNECT_BACKOFF_SECONDS: Final = 0.25
"""The least time between two attempts to connect to a broker."""

SKIP_SECONDS: Final = 10.0
"""How long a broker that did not answer is skipped, wherever any other will do."""

BOOTSTRAP: Final = "bootstrap"


def skip_unresponsive_brokers(client: AIOKafkaClient) -> None:
    """Change a client that has not been started yet, so that it skips unresponsive brokers."""
    skipping = _SkippingClient(client)
    client._get_conn_lock_value = nullcontext()  # one lock for all brokers; `get_conn` has one for each
    client._get_conn = skipping.get_conn
    client._metadata_update = skipping.update_metadata
    client.bootstrap = skipping.bootstrap
    client.get_random_node = skipping.random_broker


class _SkippingClient:
    """Replacements of a client's own methods."""

    def __init__(self, client: AIOKafkaClient) -> None:
        self._client = client
        self._get_conn = client._get_conn
        self._bootstrap = client.bootstrap
        self._opening: defaultdict[tuple[object, object], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._skip_until: dict[object, float] = {}
        self._refused_at: dict[object, float] = {}

    async def bootstrap(self) -> None:
        """Try address after address, each for no longer than a connection may take. Raises ConnectionRefused."""
        kept = self._client._request_timeout_ms
        self._client._request_timeout_ms = min(kept, int(CONNECT_TIMEOUT_SECONDS * 1000))
        try:
            with raising_refusals():
                await self._bootstrap()
        finally:
            self._client._request_timeout_ms = kept

    async def get_conn(self, node_id: object, *, group: object = ConnectionGroup.DEFAULT, no_hint: bool = False) -> Any:
        """Return a connection to a broker; None where there is none and none can be opened in time."""
        connection = self._client._conns.get((node_id, group))
        if connection is not None and connection.connected():
            return connection
        connection = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS), self._opening[node_id, group]:
                await asyncio.sleep(self._refused_at.get(node_id, 0.0) + RECONNECT_BACKOFF_SECONDS - time.monotonic())
                connection = await self._get_conn(node_id, group=group, no_hint=no_hint)
        except TimeoutError:
            self._client.force_metadata_update()
        if connection is None:
            self._refused_at[node_id] = time.monotonic()
            self._skip(node_id)
        else:
            self._skip_until.pop(node_id, None)
        return connection

    async def update_metadata(self, cluster: Any, topics: Any) -> bool:
        """Ask one broker, after a delay one more, and so on; the first answer counts."""
        request = MetadataRequest(list(topics) if topics else None)
        to_ask = self._nodes()
        asked: dict[asyncio.Task[Any], object] = {}
        try:
            while to_ask or asked:
                if to_ask:
                    node_id = to_ask.pop(0)
                    asked[asyncio.create_task(self._ask(node_id, request))] = node_id
                timeout = HEDGE_DELAY_SECONDS if to_ask else None
                done, _ = await asyncio.wait(asked, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    del asked[task]
                    if (metadata := task.result()) is not None:
                        for node_id in asked.values():
                            self._skip(node_id)
                        return self._update(cluster, metadata)
        finally:
            for task in asked:
                task.cancel()
        cluster.failed_update(None)
        return False

    def random_broker(self) -> int | None:
        """Return a broker at random, of those that are not skipped while there are any."""
        known = [broker.nodeId for broker in self._client.cluster.brokers()]
        responsive = [node_id for node_id in known if not self._is_skipped(node_id)]
        return secrets.choice(responsive or known) if known else None

    async def _ask(self, node_id: object, request: MetadataRequest) -> Any:
        connection = await self._client._get_conn(node_id)
        if connection is None:
            return None
        try:
            return await connection.send(request)
        except (KafkaError, TimeoutError):
            return None

    def _update(self, cluster: Any, metadata: Any) -> bool:
        if not metadata.brokers:  # a topic is being created: the answer says nothing yet
            return False
        cluster.update_metadata(metadata)
        # The connection to an address comes to its end once brokers are known, and so do those to brokers that the
        # cluster no longer lists: a request to a frozen one would otherwise wait out its whole timeout (0017).
        listed = {broker.nodeId for broker in cluster.brokers()}
        for key in [key for key in self._client._conns if key[0] not in listed]:
            self._client._conns.pop(key).close()
        return True

    def _nodes(self) -> list[object]:
        """Return every broker that may be asked, in random order, those to be skipped last."""
        nodes: list[object] = [broker.nodeId for broker in self._client.cluster.brokers()]
        if (BOOTSTRAP, ConnectionGroup.DEFAULT) in self._client._conns:
            nodes.append(BOOTSTRAP)
        random.shuffle(nodes)
        return sorted(nodes, key=self._is_skipped)

    def _skip(self, node_id: object) -> None:
        self._skip_until[node_id] = time.monotonic() + SKIP_SECONDS

    def _is_skipped(self, node_id: object) -> bool:
        return self._skip_until.get(node_id, 0.0) > time.monotonic()
