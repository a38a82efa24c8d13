"""What can keep an operator from rebuilding a read model, or from moving readers to a rebuild."""

from __future__ import annotations

from runtime.errors import CheckFailed, ConfigurationError, PlantError


class RebuildRefused(ConfigurationError):
    """What is asked for is not possible as the builds are."""


class RebuildRunning(CheckFailed):
    """Another operator rebuilds this read model."""


class RebuildInterrupted(PlantError):
    """The rebuild was interrupted; what is filled is kept."""

    exit_code = 130


class TopicUnusable(CheckFailed):
    """Kafka's topic does not hold every record that the log has."""

    def __init__(self, topic: str, partition: int, why: str) -> None:
        super().__init__(
            f"{topic}/{partition} can't be the source of a rebuild.", why=why,
            next_step="plant projections rebuild NAME --source log    # goes on from there",
        )  # fmt: skip


class SwapRefused(CheckFailed):
    """Readers stay on the build that they see."""


class BuildLag(CheckFailed):
    """Two builds are not at the same offsets, so they can't be compared."""


class BuildMismatch(CheckFailed):
    """Two builds of a read model differ."""
