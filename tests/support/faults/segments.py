"""The files of a broker's log, while the broker is down."""

from __future__ import annotations

from pathlib import Path

BATCH_HEADER_BYTES = 12
"""The base offset and the batch's length: https://kafka.apache.org/documentation/#recordbatch."""


def cut_log(home: Path, topic: str, partition: int, offset: int) -> None:
    """Cut a partition's log where the batch that begins at `offset` does, as a file system loses what was not synced.

    `home` is the folder of a stack. Indexes and snapshots of producers go too; the broker makes them again.
    """
    (folder,) = home.rglob(f"{topic}-{partition}")
    (segment,) = folder.glob("*.log")
    content = segment.read_bytes()
    at = 0
    while int.from_bytes(content[at : at + 8], "big") < offset:
        at += BATCH_HEADER_BYTES + int.from_bytes(content[at + 8 : at + BATCH_HEADER_BYTES], "big")
    if int.from_bytes(content[at : at + 8], "big") != offset:
        raise ValueError(f"no batch begins at offset {offset}")
    with segment.open("r+b") as file:
        file.truncate(at)
    for pattern in ("*.index", "*.timeindex", "*.snapshot"):
        for derived in folder.glob(pattern):
            derived.unlink()
