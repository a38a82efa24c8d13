"""The read model `registry`: the entity tables, filled from events, and the events that could not be folded into them.

Its fold is the function `fold_entity` of the entity tables, which its statement calls for each event.
"""

from typing import Final

VERSION: Final = 1

STARTS_PAUSED: Final = True
"""Workers feed it once an operator says so: it writes to tables that others write to (docs/decisions/0033)."""
