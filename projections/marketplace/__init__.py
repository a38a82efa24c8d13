"""The read model `marketplace`: who can be hired now, and the statement that folds a batch into its tables."""

from typing import Final

VERSION: Final = 1
