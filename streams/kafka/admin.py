"""aiokafka's admin client, with the requests that it lacks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.structs import TopicPartition

from streams.kafka.repair import Repair
from streams.kafka.topic_ids import TopicIdsRequest

REPAIR: Final = Repair(
    name="admin requests",
    needed_by="aiokafka 0.14.0",
    reason="The admin client tells neither topic ids nor the brokers, asks no chosen broker for its metadata, and no"
    " leader for its offsets.",
    until="`AIOKafkaAdminClient.describe_topics` answers with topic ids, of a broker that the caller chooses, and there"
    " is a `list_offsets`.",
    touches=(
        "aiokafka.admin:AIOKafkaAdminClient._client",
        "aiokafka.admin:AIOKafkaAdminClient._send_request(request, node_id)",
        "aiokafka.client:AIOKafkaClient.cluster",
        "aiokafka.protocol.offset:OffsetRequest",
    ),
)

# https://kafka.apache.org/protocol#The_Messages_ListOffsets
_ANY_CLIENT: Final = -1
_READ_UNCOMMITTED: Final = 0
_LATEST: Final = -1


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

    async def without_leader(self, names: Sequence[str]) -> list[TopicPartition]:
        """Return the partitions of these topics whose leader does not serve them: not yet, or none is there.

        A broker names itself the leader of a new partition before it has made its log, and refuses records until then.
        """
        without: list[TopicPartition] = []
        led: defaultdict[int, defaultdict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for _error, name, _id, _internal, partitions, *_ in await self.topics(names):
            for error, number, leader, *_ in partitions:
                if error or leader < 0:
                    without.append(TopicPartition(name, number))
                else:
                    led[leader][name].append(number)
        for leader, topics in led.items():
            asked = [(name, [(number, _LATEST) for number in numbers]) for name, numbers in topics.items()]
            answer = await self._send_request(OffsetRequest(_ANY_CLIENT, _READ_UNCOMMITTED, asked), leader)
            for name, answers in answer.topics:
                without += [TopicPartition(name, number) for number, error, *_ in answers if error]
        return without
