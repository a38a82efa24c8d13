"""The table `api_tokens`: as plant_operator, which changes it, or plant_api, which reads it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import CursorResult, text

from api.access_tokens import AccessToken, NewToken
from api.errors import UnknownAccessToken
from database.connector import Database
from database.errors import TooMuchPrivilege

_COLUMNS: Final = (
    "id, prefix, name, secret_hash, scopes, governance_agent_id AS tenant, created_at, expires_at, revoked_at"
)
# The clock of Postgres judges expiry here, that of this process once more at each request.
_USABLE: Final = text(f"""
    SELECT {_COLUMNS} FROM api_tokens
    WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now()) ORDER BY prefix
""")  # noqa: S608 (no value in it)
_ALL: Final = text(f"SELECT {_COLUMNS} FROM api_tokens ORDER BY name, created_at, id")  # noqa: S608 (no value in it)
_FIND: Final = text(f"SELECT {_COLUMNS} FROM api_tokens WHERE prefix = :prefix")  # noqa: S608 (no value in it)
_INSERT: Final = text("""
    INSERT INTO api_tokens (id, prefix, name, secret_hash, scopes, governance_agent_id, expires_at)
    VALUES (:id, :prefix, :name, :secret_hash, :scopes, :tenant, :expires_at)
""")
_REVOKE: Final = text("UPDATE api_tokens SET revoked_at = now() WHERE id = :id AND revoked_at IS NULL")
# Through a role that it is a member of, too: `SET ROLE` needs no other right.
_MAY_CHANGE: Final = text("""
    SELECT format('The role %s may change tokens.', session_user)
    WHERE EXISTS (
        SELECT FROM pg_roles AS r
        WHERE pg_has_role(session_user, r.oid, 'MEMBER')
          AND (has_any_column_privilege(r.oid, to_regclass('api_tokens'), 'INSERT, UPDATE')
               OR has_table_privilege(r.oid, to_regclass('api_tokens'), 'DELETE, TRUNCATE'))
    )
""")


class TokenStore:
    """The rows of all tokens there ever were."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(
        self,
        token_id: UUID,
        token: NewToken,
        *,
        name: str,
        scopes: tuple[str, ...],
        tenant: str,
        expires_at: datetime | None,
    ) -> None:
        """Store a token's prefix and hash."""
        values = {
            "id": token_id,
            "prefix": token.prefix,
            "name": name,
            "secret_hash": token.secret_hash,
            "scopes": list(scopes),
            "tenant": tenant,
            "expires_at": expires_at,
        }
        async with self._database.transaction() as connection:
            await connection.execute(_INSERT, values)

    async def revoke(self, token_id: UUID) -> None:
        """Revoke a token permanently. Again changes nothing."""
        async with self._database.transaction() as connection:
            await connection.execute(_REVOKE, {"id": token_id})

    async def find(self, prefix: str) -> AccessToken:
        """Return one token. Raises UnknownAccessToken."""
        async with self._database.transaction(read_only=True) as connection:
            tokens = _tokens(await connection.execute(_FIND, {"prefix": prefix}))
        if not tokens:
            raise UnknownAccessToken(f"There is no token with the prefix {prefix!r}.", next_step="plant tokens list")
        return tokens[0]

    async def all(self) -> list[AccessToken]:
        """Return every token there ever was, by name, oldest first."""
        async with self._database.transaction(read_only=True) as connection:
            return _tokens(await connection.execute(_ALL))

    async def usable(self) -> list[AccessToken]:
        """Return the tokens that are neither revoked nor expired, from the primary server."""
        async with self._database.transaction(read_only=True) as connection:
            return _tokens(await connection.execute(_USABLE))

    async def assert_read_only(self) -> None:
        """Raise TooMuchPrivilege where this process could change tokens, or could become a role that may."""
        async with self._database.transaction() as connection:
            why = (await connection.execute(_MAY_CHANGE)).scalar_one_or_none()
        if why is not None:
            raise TooMuchPrivilege(
                why=f"{why} Readers send requests to the API, so it may only read them.",
                next_step="export PLANT_DATABASE_API_URL=postgresql://plant_api:…@host/plant",
            )


def _tokens(result: CursorResult[Any]) -> list[AccessToken]:
    return [AccessToken(**{**row, "scopes": tuple(row["scopes"])}) for row in result.mappings()]
