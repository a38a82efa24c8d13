"""The functions of the database that a read model's statements call: their hashes are locked with its version.

A read model whose fold is a function of the tables that it writes to names it in FUNCTIONS. A migration that changes
one makes another fold, and so another version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from projections.errors import FunctionsChanged
from projections.read_model import ReadModel
from projections.session import Session
from projections.statements import plain_statements

_DEFINITIONS = """
SELECT p.proname::text AS name, pg_get_function_identity_arguments(p.oid) AS arguments,
    array_to_string(p.proconfig, ', ') AS settings, p.prosrc AS body
FROM pg_proc AS p WHERE p.pronamespace = 'public'::regnamespace AND p.proname = ANY (string_to_array($1, ','))
ORDER BY 1, 2
"""


def function_hashes(session: Session, names: Iterable[str]) -> dict[str, str]:
    """Return the hash of each function that there is, by name, in hex.

    It is SHA-256 of a JSON array in UTF-8: the arguments, the settings, and the statements of the body as
    `read_model.sql_hash` has them. Of a name that has several functions it covers all.
    """
    found: dict[str, list[object]] = {}
    for name, arguments, settings, body in session.query(_DEFINITIONS, (",".join(names),)):
        found.setdefault(name, []).append([arguments, settings, plain_statements(body)])
    return {
        name: hashlib.sha256(json.dumps(each, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()
        for name, each in found.items()
    }


def require_functions(session: Session, model: ReadModel) -> None:
    """Raise FunctionsChanged unless the database has a model's functions as they are locked with its version."""
    if not model.functions:
        return
    found = function_hashes(session, model.functions)
    changed = {name: found.get(name) for name, sha256 in sorted(model.functions.items()) if found.get(name) != sha256}
    if changed:
        raise FunctionsChanged(model, changed)
