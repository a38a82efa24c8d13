"""The read model `ratings`: daily counts, and the statement that folds a batch into them."""

from typing import Final

VERSION: Final = 1
