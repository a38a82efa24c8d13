"""TLS to the server, from the parameters that libpq's addresses have.

By hand, since asyncpg reads certificates only as it connects, fails then with errors that name no file, wants
`~/.postgresql/root.crt` for `verify-full` rather than the system's authorities, and has no `sslrootcert=system`.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Final

from database.errors import BadDatabaseAddress

MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
PARAMETERS: Final = ("sslmode", "sslrootcert", "sslcert", "sslkey")


def ssl_argument(parameters: Mapping[str, str]) -> ssl.SSLContext | str | bool:
    """Return asyncpg's argument `ssl`. Without `sslmode`: TLS if the server has it, as libpq does.

    `require` encrypts and, with `sslrootcert`, checks the certificate; `verify-ca` checks it; `verify-full` checks the
    host's name too. `sslrootcert=system` means the system's authorities, as does its absence. As in libpq, see
    https://www.postgresql.org/docs/current/libpq-ssl.html.

    Raises BadDatabaseAddress for an unknown mode and for a file that can't be used.
    """
    mode = parameters.get("sslmode", "prefer")
    if mode not in MODES:
        raise BadDatabaseAddress(why=f"sslmode must be one of {', '.join(MODES)}.", next_step="plant settings")
    if mode == "disable":
        return False
    if mode in ("allow", "prefer"):
        return mode
    root = parameters.get("sslrootcert", "")
    verified = mode != "require" or bool(root)
    context = ssl.create_default_context() if root in ("", "system") else _trusting(root)
    context.check_hostname = mode == "verify-full"
    if not verified:
        context.verify_mode = ssl.CERT_NONE
    if certificate := parameters.get("sslcert"):
        _identify(context, certificate, parameters.get("sslkey"))
    return context


def _trusting(root: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=root)
    except (OSError, ssl.SSLError) as error:
        raise _unusable("sslrootcert", root, error) from error


def _identify(context: ssl.SSLContext, certificate: str, key: str | None) -> None:
    try:
        # Without a password, OpenSSL would ask the terminal for that of an encrypted key.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ssl.SSLError) as error:
        raise _unusable("sslcert or sslkey", certificate, error) from error


def _unusable(name: str, file: str, error: Exception) -> BadDatabaseAddress:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return BadDatabaseAddress(why=f"{name}: {file} can't be used: {reason}.", next_step=f"ls -l {file}")
