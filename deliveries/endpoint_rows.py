"""The rows of `endpoints` and `endpoint_secrets`: the statements, and what they return."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import RowMapping, TextClause, text

from deliveries.endpoints import Endpoint, EndpointConfiguration, EndpointStart, ReceiverAgreement
from signing.master_key_rows import SecretTable

_COLUMNS: Final = """
    id, governance_agent_id, url, description, event_types, filter::text AS filter, payload_form, ordering,
    after_dead_letter, retry_schedule, rate_per_second, timeout_seconds, custom_header_names, start_offsets, starts_at,
    state, state_reason, state_changed_at, created_at, enabled_at, configured_at, handshake, agreed_at,
    agreed_rate_per_minute, creation_digest
"""
_CONFIGURATION: Final = tuple(name for name in EndpointConfiguration.__struct_fields__ if name != "filter")

ALL: Final = text(f"SELECT {_COLUMNS} FROM endpoints ORDER BY created_at, id")  # noqa: S608 (no value in it)
FIND: Final = text(f"SELECT {_COLUMNS} FROM endpoints WHERE id = :id")  # noqa: S608 (no value in it)
FIND_MANY: Final = text(f"SELECT {_COLUMNS} FROM endpoints WHERE id = ANY (:ids)")  # noqa: S608 (no value in it)
PAGE: Final = """
    SELECT {columns} FROM endpoints WHERE {conditions} ORDER BY created_at, id LIMIT :limit
"""
COUNT: Final = text("SELECT count(*) FROM endpoints WHERE state <> 'removed'")
# One after the other for a tenant: requests that come at once see each other's endpoints.
ONE_BY_ONE: Final = text("SELECT pg_advisory_xact_lock(hashtext('plant endpoints'), hashtext(:tenant))")
_CHANGED: Final = """
    SELECT id, greatest(state_changed_at, configured_at, secrets.changed_at) AS changed_at
    FROM endpoints LEFT JOIN (
        SELECT endpoint_id, max(created_at) AS changed_at FROM endpoint_secrets GROUP BY endpoint_id
    ) AS secrets ON endpoint_id = id
    WHERE CAST(:since AS timestamptz) IS NULL OR greatest(state_changed_at, configured_at, secrets.changed_at) >= :since
"""
CHANGED: Final = text(_CHANGED)
# In any order: which endpoints, and when each changed.
CHANGES_DIGEST: Final = text(f"""
    SELECT count(*), bit_xor(hash_record_extended(changed, 0)) FROM ({_CHANGED}) AS changed
""")  # noqa: S608 (no value in it)
# Through a role that it is a member of, too: `SET ROLE` needs no other right.
SEES_ALL: Final = text("""
    SELECT format('The role %s sees what is of every tenant.', session_user)
    WHERE EXISTS (
        SELECT FROM pg_policy AS p, pg_roles AS r
        WHERE p.polrelid = to_regclass('endpoints') AND p.polname = 'every_tenant' AND r.oid = ANY (p.polroles)
          AND pg_has_role(session_user, r.oid, 'MEMBER')
    )
""")
LOCK: Final = text("SELECT state FROM endpoints WHERE id = :id FOR UPDATE")
INSERT: Final = text("""
    INSERT INTO endpoints (id, governance_agent_id, url, description, event_types, filter, payload_form, ordering,
                           after_dead_letter, retry_schedule, rate_per_second, timeout_seconds, custom_header_names,
                           start_offsets, starts_at, handshake, agreed_at, agreed_rate_per_minute, creation_digest)
    VALUES (:id, :tenant, :url, :description, :event_types, CAST(:filter AS jsonb), :payload_form, :ordering,
            :after_dead_letter, :retry_schedule, :rate_per_second, :timeout_seconds, :custom_header_names,
            :start_offsets, :starts_at, :handshake, :agreed_at, :agreed_rate_per_minute, :creation_digest)
""")
CONFIGURE: Final = text("""
    UPDATE endpoints
    SET url = :url, description = :description, payload_form = :payload_form, retry_schedule = :retry_schedule,
        rate_per_second = :rate_per_second, timeout_seconds = :timeout_seconds,
        custom_header_names = :custom_header_names, handshake = :handshake, agreed_at = :agreed_at,
        agreed_rate_per_minute = :agreed_rate_per_minute, configured_at = clock_timestamp()
    WHERE id = :id AND configured_at = :seen AND state <> 'removed'
""")
AGREE: Final = text("""
    UPDATE endpoints
    SET agreed_at = :agreed_at, agreed_rate_per_minute = :agreed_rate_per_minute, configured_at = clock_timestamp()
    WHERE id = :id AND configured_at = :seen AND handshake AND state <> 'removed'
""")
CHANGE_STATE: Final = text("""
    UPDATE endpoints SET state = :state, state_reason = :reason, state_changed_at = now(), resumes = resumes + :resumes,
        resumed_offsets = CASE WHEN :resumes = 0 THEN resumed_offsets ELSE CAST(:offsets AS bigint[]) END
    WHERE id = :id AND state = ANY (:states)
""")

INSERT_SECRET: Final = text("""
    INSERT INTO endpoint_secrets (id, endpoint_id, kind, nonce, ciphertext, public_key)
    VALUES (:id, :endpoint_id, :kind, :nonce, :ciphertext, :public_key)
""")
SECRETS: Final = text("""
    SELECT id, endpoint_id, kind, nonce, ciphertext, public_key FROM endpoint_secrets
    WHERE endpoint_id = :endpoint_id AND (expires_at IS NULL OR expires_at > now())
    ORDER BY created_at DESC, id
""")
SECRETS_OF_MANY: Final = text("""
    SELECT id, endpoint_id, kind, nonce, ciphertext, public_key, expires_at FROM endpoint_secrets
    WHERE endpoint_id = ANY (:ids) AND (expires_at IS NULL OR expires_at > now())
    ORDER BY created_at DESC, id
""")
KEYS: Final = text("""
    SELECT endpoint_id, id, kind, public_key, created_at, expires_at FROM endpoint_secrets
    WHERE kind <> 'headers' AND endpoint_id = ANY (:endpoint_ids) AND (expires_at IS NULL OR expires_at > now())
    ORDER BY endpoint_id, kind, created_at DESC, id
""")
EXPIRE_OTHERS: Final = text("""
    UPDATE endpoint_secrets SET expires_at = now() + CAST(:overlap AS interval)
    WHERE endpoint_id = :endpoint_id AND kind = :kind AND id <> :id AND expires_at IS NULL
""")
REMOVE_SECRET: Final = text("DELETE FROM endpoint_secrets WHERE id = :id")
REMOVE_SECRETS: Final = text("DELETE FROM endpoint_secrets WHERE endpoint_id = :endpoint_id")
REMOVE_HEADERS: Final = text("DELETE FROM endpoint_secrets WHERE endpoint_id = :endpoint_id AND kind = 'headers'")
REMOVE_EXPIRED: Final = text("""
    DELETE FROM endpoint_secrets WHERE endpoint_id = :endpoint_id AND expires_at <= now()
""")
_USABLE_SECRETS: Final = text("""
    SELECT id, endpoint_id, kind, nonce, ciphertext FROM endpoint_secrets
    WHERE expires_at IS NULL OR expires_at > now()
    ORDER BY endpoint_id, id
""")
_REPLACE_SECRET: Final = text("UPDATE endpoint_secrets SET nonce = :nonce, ciphertext = :ciphertext WHERE id = :id")


def values_of(configuration: EndpointConfiguration) -> dict[str, Any]:
    """Return the parameters of `INSERT` that a configuration gives."""
    values = {name: getattr(configuration, name) for name in _CONFIGURATION}
    filter_text = msgspec.json.encode(configuration.filter).decode()
    return {**values, "event_types": list(configuration.event_types), "filter": filter_text}


def endpoint_of(row: RowMapping) -> Endpoint:
    """Return the endpoint of a row of `ALL` or `FIND`."""
    configuration = {name: row[name] for name in _CONFIGURATION}
    return Endpoint(
        id=row["id"],
        tenant=row["governance_agent_id"],
        configuration=EndpointConfiguration(
            **{**configuration, "event_types": tuple(row["event_types"])}, filter=msgspec.json.decode(row["filter"])
        ),
        custom_header_names=tuple(row["custom_header_names"]),
        start=EndpointStart(tuple(row["start_offsets"]), row["starts_at"]),
        state=row["state"],
        state_reason=row["state_reason"],
        state_changed_at=row["state_changed_at"],
        created_at=row["created_at"],
        enabled_at=row["enabled_at"],
        configured_at=row["configured_at"],
        agreement=_agreement_of(row),
        creation_digest=None if row["creation_digest"] is None else bytes(row["creation_digest"]),
    )


def agreement_values(agreement: ReceiverAgreement | None) -> dict[str, Any]:
    """Return the parameters that an agreement gives."""
    return {
        "agreed_at": None if agreement is None else agreement.at,
        "agreed_rate_per_minute": None if agreement is None else agreement.rate_per_minute,
    }


def endpoints_page(*, after: bool, states: bool) -> TextClause:
    """Return the statement of a page of endpoints, oldest first: behind one, and of some states."""
    conditions = ["state = ANY (:states)"] if states else ["state <> 'removed'"]
    if after:
        conditions.append("(created_at, id) > (:after_time, :after_id)")
    return text(PAGE.format(columns=_COLUMNS, conditions=" AND ".join(conditions)))


def _agreement_of(row: RowMapping) -> ReceiverAgreement | None:
    return None if row["agreed_at"] is None else ReceiverAgreement(row["agreed_at"], row["agreed_rate_per_minute"])


def secret_row_name(secret_id: UUID, endpoint_id: UUID, kind: str) -> bytes:
    """Return the name of a secret's row, which its ciphertext is bound to."""
    return f"plant.endpoint_secrets.v1\n{secret_id}\n{endpoint_id}\n{kind}".encode()


def name_of(row: RowMapping) -> bytes:
    """Return the same for a row."""
    return secret_row_name(row["id"], row["endpoint_id"], row["kind"])


def _label_of(row: RowMapping) -> str:
    return f"endpoint {row['endpoint_id']}/{row['kind']}"


ENDPOINT_SECRETS: Final = SecretTable(
    usable=_USABLE_SECRETS, replace=_REPLACE_SECRET, associated_data=name_of, label=_label_of
)
"""Signing keys and custom headers of endpoints."""
