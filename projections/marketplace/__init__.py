"""The read model `marketplace`: who can be hired now, and the statements that fold a batch into its tables."""

from typing import Final

VERSION: Final = 2
