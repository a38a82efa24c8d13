"""Fixtures: one Kafka and one Postgres a session; a database and topics a test.

`tests/support/skips.py` fails a run in CI that skips what `allowed_skips.toml` does not list.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

import msgspec
import pytest
import pytest_asyncio
import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError, TopicAlreadyExistsError
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from database import migrate
from devstack import postgres, sql
from devstack.stack import Stack
from projections.install import install
from runtime.settings import Settings, load_settings
from streams.topics import DEAD_EVENTS_TOPIC
from tests.support.databases import Databases
from tests.support.services import Services, local_stack, make_whole, services
from tests.support.waiting import wait_until_async

SHARED_FIXTURES = (
    "collector", "secret_logs", "skips", "at_home", "parallel", "serving", "reading", "roles", "log_fixtures",
    "projectors", "ingress_process", "endpoint_api", "rebuilding",
)  # fmt: skip
pytest_plugins = [f"tests.support.{name}" for name in SHARED_FIXTURES]

DEFAULT_PARTITIONS = 4

# A busy machine makes a test slow, never red: no example has a deadline, and neither has their generation.
hypothesis_settings.register_profile("plant", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("plant")


@dataclass(frozen=True)
class Database:
    """A migrated, empty database of one test, and its address for each role."""

    name: str
    owner_url: str
    writer_url: str
    ingress_url: str
    operator_url: str
    api_url: str
    auditor_url: str
    embedder_url: str
    deliverer_url: str
    endpoints_url: str
    superuser_url: str


class SettingsFor(Protocol):
    def __call__(self, database: Database, **changes: object) -> Settings: ...


class MakeTopic(Protocol):
    async def __call__(
        self, partitions: int = DEFAULT_PARTITIONS, *, family: str = "genesis.events", **config: str
    ) -> str: ...


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo what a command that ran in this process has configured: its lines went to a stderr that is closed since."""
    root, configuration = logging.getLogger(), structlog.get_config()
    level, handlers = root.level, list(root.handlers)
    yield
    structlog.configure(**configuration)
    root.setLevel(level)
    root.handlers = [each for each in root.handlers if each in handlers or type(each).__module__.startswith("_pytest")]


@pytest.fixture(scope="session")
def stack() -> Iterator[Services]:
    """Kafka and Postgres for the whole session, with roles and passwords, and the topic that every relay needs."""
    with services() as found:
        asyncio.run(_make_dead_topic(found))
        yield found


async def _make_dead_topic(stack: Services) -> None:
    client = AIOKafkaAdminClient(bootstrap_servers=stack.kafka_bootstrap_servers)
    await client.start()
    try:
        with contextlib.suppress(TopicAlreadyExistsError):  # another process of this run was first
            await client.create_topics([NewTopic(DEAD_EVENTS_TOPIC, DEFAULT_PARTITIONS, 1)])
    finally:
        await client.close()


@pytest.fixture(scope="module")
def private_stack() -> Iterator[Stack]:
    """A stack that only this module uses: its processes may be killed. Not migrated, no topics."""
    with local_stack(f"private-{secrets.token_hex(4)}") as own:
        yield own


@pytest.fixture(autouse=True)
def whole_private_stack(request: pytest.FixtureRequest) -> None:
    """A test that failed has perhaps left a stack without its database or broker: the next test has them again."""
    if "private_stack" in request.fixturenames:
        make_whole(request.getfixturevalue("private_stack"))


@pytest.fixture(scope="session")
def template_database(stack: Services) -> Iterator[str]:
    """The name of a migrated database that nobody connects to: tests get copies."""
    name = f"plant_template_{secrets.token_hex(4)}"
    postgres.create_database(stack.superuser_url, name)
    sql.execute(_in_database(stack.superuser_url, name), ["CREATE EXTENSION vector", postgres.SCHEMA_GRANT])
    owner_url = _in_database(stack.environ["PLANT_DATABASE_OWNER_URL"], name)
    migrate.upgrade(owner_url)
    install(owner_url)
    yield name
    postgres.drop_database(stack.superuser_url, name)


@pytest.fixture(scope="session")
def databases(stack: Services, template_database: str) -> Iterator[Databases]:
    """Copies of the migrated database, which tests use one after another."""
    made = Databases(stack.superuser_url, template_database, _in_database)
    yield made
    made.close()


@pytest.fixture
def make_database(stack: Services, databases: Databases) -> Iterator[Callable[[], Database]]:
    """Makes clean databases; when the test ends they are put back as they were, or dropped."""
    made: list[str] = []

    def make() -> Database:
        name = databases.take()
        made.append(name)
        roles = ("owner", "writer", "ingress", "operator", "api", "auditor", "embedder", "deliverer", "endpoints",
                 "superuser")  # fmt: skip
        urls = {role: _in_database(stack.environ[f"PLANT_DATABASE_{role.upper()}_URL"], name) for role in roles}
        return Database(name, *(urls[role] for role in roles))

    yield make
    for name in made:
        databases.give_back(name)


@pytest.fixture
def database(make_database: Callable[[], Database]) -> Database:
    """A clean, migrated database."""
    return make_database()


@pytest.fixture(scope="session")
def settings_for(stack: Services) -> SettingsFor:
    """Settings for a database of this session: its own consumer group, a port chosen by the system.

    The master key is one for the session: each secret that was read is looked for in every text that is logged later.
    """
    master_key = base64.b64encode(secrets.token_bytes(32)).decode()

    def build(database: Database, **changes: object) -> Settings:
        settings = load_settings(
            {
                "PLANT_HOME": "/nonexistent",
                **{name: value for name, value in stack.environ.items() if name.startswith("PLANT_KAFKA_")},
                "PLANT_DATABASE_OWNER_URL": database.owner_url,
                "PLANT_DATABASE_WRITER_URL": database.writer_url,
                "PLANT_DATABASE_INGRESS_URL": database.ingress_url,
                "PLANT_DATABASE_OPERATOR_URL": database.operator_url,
                "PLANT_DATABASE_API_URL": database.api_url,
                "PLANT_DATABASE_AUDITOR_URL": database.auditor_url,
                "PLANT_DATABASE_EMBEDDER_URL": database.embedder_url,
                "PLANT_DATABASE_DELIVERER_URL": database.deliverer_url,
                "PLANT_DATABASE_ENDPOINTS_URL": database.endpoints_url,
                "PLANT_MASTER_KEY": master_key,
                "PLANT_CONSUMER_GROUP": f"test-{secrets.token_hex(6)}",
                "PLANT_INGRESS_PORT": "0",
                "PLANT_TOPIC_PARTITIONS": str(DEFAULT_PARTITIONS),
            }
        )
        return msgspec.structs.replace(settings, **changes)

    return build


@pytest.fixture
def settings(database: Database, settings_for: SettingsFor) -> Settings:
    """Settings for this test's clean database."""
    return settings_for(database)


@pytest_asyncio.fixture
async def make_topic(stack: Services) -> AsyncIterator[MakeTopic]:
    """Makes topics with names of their own; they go when the test ends."""
    client = AIOKafkaAdminClient(bootstrap_servers=stack.kafka_bootstrap_servers)
    await client.start()
    made: list[str] = []

    async def make(partitions: int = DEFAULT_PARTITIONS, *, family: str = "genesis.events", **config: str) -> str:
        name = f"{family}-{secrets.token_hex(6)}"
        options = {key.replace("_", "."): value for key, value in config.items()}
        await client.create_topics([NewTopic(name, partitions, 1, topic_configs=options)])
        made.append(name)

        async def is_known() -> bool:
            (described,) = await client.describe_topics([name])
            return described["error_code"] == 0 and len(described["partitions"]) == partitions

        await wait_until_async(is_known, f"the broker knows {name}")  # it may name a new topic late
        return name

    try:
        yield make
    finally:
        if made:
            try:
                await client.delete_topics(made)
            except KafkaConnectionError:  # brokers close connections that were idle for ten minutes
                await client.delete_topics(made)
        await client.close()


@pytest_asyncio.fixture
async def topic(make_topic: MakeTopic) -> str:
    """A fresh topic with four partitions."""
    return await make_topic()


def _in_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
