"""The read model `agents`: its tables, and the statement that folds a batch into them."""

from typing import Final

VERSION: Final = 1
