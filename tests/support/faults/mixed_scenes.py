"""Where faults are mixed: a fresh database and a topic for each seed, on a stack whose Postgres may be killed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from confluent_kafka.admin import AdminClient, NewTopic

from devstack import postgres
from devstack.stack import Stack
from tests.support.faults.scene import Scene
from tests.support.waiting import DEADLINE_SECONDS, wait_until


@contextlib.contextmanager
def copied_scene(stack: Stack, migrated: Scene, folder: Path, name: str, partitions: int) -> Iterator[Scene]:
    """Yield a scene on a copy of a scene's database, which nobody uses, with a topic and a group of this name."""
    superuser_url = stack.environ["PLANT_DATABASE_SUPERUSER_URL"]
    template = urlsplit(superuser_url).path.removeprefix("/")
    maintenance_url = _in_database(superuser_url, "postgres")
    postgres.create_database(maintenance_url, name, template=template)
    addresses = {
        key: _in_database(value, name)
        for key, value in migrated.environ.items()
        if key.startswith("PLANT_DATABASE_") and key.endswith("_URL")
    }
    topic = f"genesis.events-{name}"
    admin = AdminClient({"bootstrap.servers": migrated.settings.kafka_address(), "log_level": 0})
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(DEADLINE_SECONDS)
    wait_until(lambda: topic in admin.list_topics(timeout=DEADLINE_SECONDS).topics, "the broker knows the topic")
    folder.mkdir(parents=True, exist_ok=True)
    scene = Scene({**migrated.environ, **addresses, "PLANT_CONSUMER_GROUP": name}, topic, folder)
    try:
        yield scene
    finally:
        scene.end()
        postgres.drop_database(maintenance_url, name)


def _in_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
