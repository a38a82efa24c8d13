"""The read model `skills`: the catalogue, validations, and the statement that folds a batch into them."""

from typing import Final

VERSION: Final = 1
