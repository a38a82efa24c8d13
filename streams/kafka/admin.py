"""aiokafka's admin client, with the requests that it lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient

from streams.kafka.repair import Repair
from streams.kafka.topic_ids import TopicIdsRequest

REPAIR: Final = Repair(
    name="admin requests",
    needed_by="aiokafka 0.14.0",
    reason="The admin client tells neither topic ids nor the brokers, and asks no chosen broker for its metadata.",
    until="`AIOKafkaAdminClient.describe_topics` answers with topic ids, of a broker that the caller chooses.",
    touches=(
        "aiokafka.admin:AIOKafkaAdminClient._client",
        "aiokafka.admin:AIOKafkaAdminClient._send_request(request, node_id)",
        "aiokafka.client:AIOKafkaClient.cluster",
    ),
)


class RepairedAdmin(AIOKafkaAdminClient):  # type: ignore[misc]  # aiokafka is not type-checked here
    """An admin client. Made by `streams.kafka.clients.make_admin`."""

    @property
    def client(self) -> AIOKafkaClient:
        """The connections to the brokers."""
        return self._client

    def broker_ids(self) -> list[int]:
        """Return the numbers of the brokers that are known."""
        return [broker.nodeId for broker in self._client.cluster.brokers()]

    async def topics(self, names: Sequence[str], broker_id: int | None = None) -> list[Any]:
        """Return the protocol's entries of these topics as one broker has them, any broker where none is chosen."""
        response = await self._send_request(TopicIdsRequest(names), broker_id)
        return list(response.topics)
