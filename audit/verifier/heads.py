"""Chain heads: small enough to keep elsewhere, and enough to notice later that a chain was rewritten or cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from audit.verifier.chain_range import Chain
from audit.verifier.errors import BadHeadsFile

Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
FORMAT = "plant.audit.heads/1"


class Head(msgspec.Struct, frozen=True, order=True, kw_only=True):
    """The last entry of a chain when it was read; `hash` in hex."""

    topic: str
    partition: Annotated[int, Meta(ge=0)]
    offset: Annotated[int, Meta(ge=0)]
    hash: Hash

    @property
    def chain(self) -> Chain:
        """Its chain."""
        return Chain(self.topic, self.partition)


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: Literal["plant.audit.heads/1"]
    heads: list[Head]


def dump(heads: Sequence[Head]) -> str:
    """Return the heads as the JSON text that :func:`load` reads."""
    encoded = msgspec.json.encode({"format": FORMAT, "heads": heads})
    return msgspec.json.format(encoded, indent=2).decode() + "\n"


def load(path: Path) -> list[Head]:
    """Read kept heads from a file. Raises BadHeadsFile."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_File).heads
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadHeadsFile(why=f"{path}: {error}.", next_step="plant audit head > heads.json") from error
