"""The read model `activity`: hourly counts, and the statement that folds a batch into them."""

from typing import Final

VERSION: Final = 1
