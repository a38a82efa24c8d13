"""What of a setting is secret: whole values by their names, and the passwords of addresses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from runtime.redaction import MASK

SECRET_NAMES: Final = frozenset(
    {
        "kafka_oauth_client_secret",
        "kafka_sasl_password",
        "kafka_ssl_key_password",
        "master_key",
        "master_key_previous",
    }
)

_ADDRESS: Final = re.compile(r"://(?P<user>[^:@/]*):(?P<password>.*)@[^@]*?(/(?P<database>[^?]*))?(\?.*)?$", re.DOTALL)


def masked(name: str, value: Any) -> Any:
    """Return the value of a field without its secret part.

    >>> masked("database_url", "postgresql://plant_api:s3cret@db:5432/plant")
    'postgresql://plant_api:********@db:5432/plant'
    """
    if not isinstance(value, str) or not value:
        return value
    if name in SECRET_NAMES:
        return MASK
    # Up to the last @: a password may hold one.
    without_userinfo = re.sub(r"(?<=://)([^:@/]*):.*(?=@)", rf"\1:{MASK}", value, flags=re.DOTALL)
    if "://" not in value:  # A mistyped address, perhaps with a password in it.
        without_userinfo = re.sub(r".*(?=@)", MASK, without_userinfo, flags=re.DOTALL)
    elif "@" not in value:  # What follows the colon is a port, or a password whose @ was forgotten.
        without_userinfo = re.sub(r"(?<=://)([^:/?]*):(?!\d*(?:[/?,]|$)).*", rf"\1:{MASK}", value, flags=re.DOTALL)
    return re.sub(r"(?i)(password\s*=\s*)('[^']*'|[^&\s]*)", rf"\1{MASK}", without_userinfo)


def secrets_in(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield each secret text of some settings: whole values, and the passwords of addresses.

    >>> list(secrets_in({"database_url": "postgresql://u:s3cret@h/d", "ingress_host": "h"}))
    ['s3cret']
    """
    for name, value in fields.items():
        if name in SECRET_NAMES:
            yield str(value)
        elif isinstance(value, str):
            yield from _passwords(value)


def _passwords(value: str) -> Iterator[str]:
    """Yield the passwords in an address; one that is the user's or the database's name is no secret."""
    if found := _ADDRESS.search(value):
        if found["password"] not in (found["user"], found["database"]):
            yield found["password"]
        if (first := found["password"].partition("@")[0]) != found["password"]:
            yield first  # Some libraries read it up to the first @.
    yield from re.findall(r"(?i)password\s*=\s*'?([^&\s']+)", value)
