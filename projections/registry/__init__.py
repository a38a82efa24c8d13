"""The read model `registry`: the entity tables, filled from events, and the events that could not be folded into them.

Its fold is the function `fold_entity` of the entity tables, which its statement calls for each event.
There is no `queries.py`: entities are read through `entities/`, and what could not be folded is for operators, in SQL.
"""

from typing import Final

VERSION: Final = 1

STARTS_PAUSED: Final = True
"""Workers feed it once an operator says so: it writes to tables that others write to (docs/decisions/0033)."""

FUNCTIONS: Final = {
    "enforce_external_id": "571c2bb96ca449cb87a3f9f43607e4e60f49400ce8fe51033c47134b5221fc3d",
    "fold_entity": "79c75c362cf85a04e382d8a93fe5498a52e0d487e130cdac52c2612da936044a",
    "fold_into_entity": "ec3c54d5d1823eeb9456c9d51299e7aaed7c7eb33afb77ef500259e0f838f242",
    "is_projecting": "6da3ba8cb142de67c34de1a745d97a01dcfc60d8270ef3023010b32e94ba33e6",
}
"""Its fold, with the hash of each function's definition: a migration that changes one raises VERSION."""
