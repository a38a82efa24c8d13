"""What can go wrong with read models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from projections.read_model import ReadModel
from projections.session import StatementEnded
from runtime.errors import CheckFailed, PlantError
from streams.errors import PartitionStopped, TooMuchParked

_WAITS = "Once the poison records of some entities are redriven or skipped, the partition goes on within seconds."
_NEXT_STEP = "plant dead-letters list    # then redrive or skip; or plant worker, with a larger"


class ReadModelStopped(PlantError):
    """A read model does not follow its partition any more; the log and the other read models go on."""

    def __init__(self, model: ReadModel, topic: str, partition: int, next_offset: int, reason: str) -> None:
        self.model = model
        self.topic = topic
        self.partition = partition
        self.next_offset = next_offset
        self.reason = reason
        super().__init__(
            f"The read model {model.name} does not follow {topic}/{partition} any more.",
            why=f"It stays at offset {next_offset}, and is tried again every few minutes: {reason}",
            next_step="plant projections list    # once the reason is mended, it catches up by itself",
        )


class ModelStatementEnded(StatementEnded):
    """The database ends a read model's statement without refusing it, and had no trouble with what came before it."""

    def __init__(self, model: ReadModel, error: StatementEnded) -> None:
        what = f"The database has ended the statement of the read model {model.name} without refusing it."
        super().__init__(error.sqlstate, what, why=error.why or "")


class ReadModelAhead(PartitionStopped):
    """A read model holds records that the log lacks, so the log has lost its end; going on would give offsets twice."""


class BuildReshaped(CheckFailed):
    """A new build of a read model has other columns than its view, so readers could not be moved to it."""


class FoldChanged(CheckFailed):
    """The SQL of a read model is not the one that its version stands for."""

    def __init__(self, model: ReadModel, sha256: str) -> None:
        super().__init__(
            f"The SQL of the read model {model.name} was changed, and its version is still {model.version}.",
            why=f"tables.sql and apply.sql have the hash {model.sha256[:12]}, and the database keeps {sha256[:12]}.",
            next_step=f"plant projections check    # once VERSION in projections/{model.name} is raised",
        )


class BuildMissing(CheckFailed):
    """The database has no build of a read model of this release."""

    def __init__(self, models: Iterable[ReadModel]) -> None:
        names = ", ".join(f"{model.name} (version {model.version})" for model in models)
        super().__init__(why=f"It does not keep the SQL of {names}.", next_step="plant db upgrade")


class BuildUnusable(PlantError):
    """A worker can't run what a build of a read model keeps."""


class BuildAltered(BuildUnusable):
    """The SQL that a build keeps is not what its hash says."""

    def __init__(self, model: ReadModel) -> None:
        super().__init__(
            why=f"The owner stored other SQL for version {model.version} of {model.name} than stands there now.",
            next_step="see docs/how-to/add-a-projection.md",
        )


class FunctionsChanged(BuildUnusable):
    """The database has other functions than those that a version of a read model was locked with."""

    def __init__(self, model: ReadModel, hashes: Mapping[str, str | None]) -> None:
        """`hashes` has those that the database's own functions have; None: it has none of that name."""
        found = (f"{name} ({sha256 or 'missing'})" for name, sha256 in hashes.items())
        super().__init__(
            f"The functions that the read model {model.name} calls were changed, and its version is still"
            f" {model.version}.",
            why=f"The database has others than that version was locked with: {', '.join(found)}.",
            next_step=f"plant projections check    # once VERSION in projections/{model.name} is raised",
        )


class StagedRowsUnknown(BuildUnusable):
    """A build reads staged rows that this worker does not have."""

    def __init__(self, model: ReadModel, reads: str) -> None:
        super().__init__(
            why=f"Version {model.version} of {model.name} reads {reads}, so it was made by another release than this"
            " worker's.",
            next_step="plant --version",
        )


class TooManyParkedEntities(TooMuchParked):
    """More entities of a partition are parked than its worker may keep, so it goes no further."""

    def __init__(self, topic: str, partition: int, offset: int, entities_max: int) -> None:
        super().__init__(
            f"{entities_max} entities of {topic}/{partition} are parked, and no more may be.",
            offset,
            why=f"The record at offset {offset} is poison and parks another one. {_WAITS}",
            next_step=f"{_NEXT_STEP} PLANT_WORKER_PARKED_ENTITIES_MAX",
        )


class TooManyParkedRecords(TooMuchParked):
    """More records of a partition wait in queues than its worker may keep, so it goes no further."""

    def __init__(self, topic: str, partition: int, offset: int, records_max: int) -> None:
        super().__init__(
            f"{records_max} records of {topic}/{partition} wait behind poison, and no more may.",
            offset,
            why=f"The record at offset {offset} is of a parked entity. {_WAITS}",
            next_step=f"{_NEXT_STEP} PLANT_WORKER_PARKED_RECORDS_MAX",
        )


class RepeatApplied(PartitionStopped):
    """The log holds an event id twice: something other than its owner has written to it, or a check has failed."""

    def __init__(self, topic: str, partition: int, first_offset: int, why: str) -> None:
        super().__init__(
            f"The log of {topic}/{partition} holds an event twice, in the range from offset {first_offset} on.",
            why=f"{why}. Going on would count it twice in every read model.",
            next_step="see docs/runbooks/the-log.md",
        )
