"""Each table of the schema: whether Kafka's topics hold what is in it, and if not, what is to be kept elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

LOG_AND_MODELS: Final = frozenset({
    "log_records", "log_ranges", "checkpoints", "model_checkpoints", "partition_owners", "read_model_builds",
    "delivery_checkpoints", "delivery_marks", "delivery_owners", "alembic_version",
})  # fmt: skip
"""Tables that `plant recover` fills, or `plant db upgrade` before it. The tables of read models are in schemas of their
own, and are filled as well."""

FILLED_LATER: Final[Mapping[str, str]] = {
    "webhook_deliveries": "by deliverers, from the topic of attempts: 30 days of it",
    "webhook_attempts": "by deliverers, from the topic of attempts: 30 days of it",
    "skill_embeddings": "by `plant embed`, which computes them again",
    **dict.fromkeys(
        ("entities", "agents", "agent_skills", "industries", "job_roles", "job_role_skills", "skills", "team_members",
         "teams", "entity_versions"),
        "by the read model `registry`, if it is resumed before `plant recover`; versions get new times",
    ),
}  # fmt: skip
"""Tables that are filled from topics, but not by `plant recover` alone."""


class LostTable(NamedTuple):
    """A table that no topic holds, what is lost with it, and whether a copy of it may be restored."""

    table: str
    lost: str
    restorable: bool
    without: str
    """What to do without a copy, or why a copy is not restored: it would do again what was done since."""


LOST: Final = (
    LostTable("webhook_signatures", "keys of producers", True, "make new keys: plant keys add"),
    LostTable("master_keys", "check values of master keys", True, "they are made with the first key or endpoint"),
    LostTable("producers", "what producers may send", True, "say it again: plant producers set"),
    LostTable("api_tokens", "tokens of readers", True, "make new tokens"),
    LostTable("endpoints", "endpoints of subscribers", True, "add them again, from now on"),
    LostTable("endpoint_secrets", "secrets and headers of endpoints", True, "give subscribers new keys"),
    LostTable("endpoint_backfills", "how far endpoints were fed", True, "without it endpoints get everything again"),
    LostTable("endpoint_streaks", "failures in a row of endpoints", False, "they are counted again"),
    LostTable("endpoint_throttles", "how long endpoints asked to be left alone", False, "they ask for it again"),
    LostTable("endpoint_events", "changes of endpoints not yet published", False, "those of a copy were published"),
    LostTable("delivery_waits", "deliveries that waited for an attempt", False, "those of a copy were attempted"),
    LostTable("redrives", "orders to send deliveries again", False, "an order of a copy would begin again"),
    LostTable("redrive_slots", "what orders were to send", False, "order again what was running"),
    LostTable("redrive_partitions", "how far orders were", False, "order again what was running"),
    LostTable("missing_searches", "searches for what was not sent", False, "ask again"),
    LostTable("outbox", "direct changes not yet published", False, "make them again"),
    LostTable("rebuilds", "the history of rebuilds", False, "the builds of a copy are not there"),
)
"""Tables that no topic holds."""

LOST_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "entity_versions": ("recorded_at", "recorded_by", "state", "version_hash", "previous_hash", "hash"),
    "entities": (
        "created_at", "updated_at", "version_hash", "hash_chain_sha256", "amendment_history", "evolution_markers",
        "l0_compliance_status", "amendment_alignment", "drift_detector", "tags", "custom_attributes",
        "governance_notes", "parent_id", "deleted_at",
    ),
    "log_ranges": ("closed_at",),
    "partition_owners": (
        "token", "worker", "backend_pid", "backend_started_at", "feeder_pid", "feeder_started_at", "taken_at"
    ),
}  # fmt: skip
"""Columns that recovered rows have otherwise: when or by which process a row was written, and what no event carries."""


def backup_command() -> str:
    """Return the command that copies the tables that can be restored, with the address of a superuser."""
    tables = " ".join(f"-t {each.table}" for each in LOST if each.restorable)
    return f'pg_dump "$PLANT_DATABASE_SUPERUSER_URL" --data-only --format=custom {tables} --file=plant-kept.dump'
