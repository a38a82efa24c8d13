"""The partition of a key: the murmur2 of Kafka's Java client, so every producer of a topic agrees.

Source: org.apache.kafka.common.utils.Utils.murmur2 and BuiltInPartitioner. aiokafka's own reads byte by byte and takes
twice as long.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final

KEYS_REMEMBERED: Final = 50_000
"""Entities come again and again; to look one up costs a twentieth of hashing."""

_SEED: Final = 0x9747B28C
_M: Final = 0x5BD1E995
_WORD: Final = 0xFFFFFFFF
_UUID_WORDS: Final = struct.Struct("<9I").unpack


@lru_cache(KEYS_REMEMBERED)
def partition_of(key: bytes, partition_count: int) -> int:
    """Return the partition of a key in a topic that has this many.

    >>> partition_of(b"72d76358-5032-530d-b5a7-ee89ea19f5a4", 8)
    6
    """
    return (murmur2(key) & 0x7FFFFFFF) % partition_count


def murmur2(key: bytes) -> int:
    """Return the 32-bit MurmurHash2 with Kafka's seed, unsigned.

    >>> murmur2(b"21")
    3321034988
    """
    length = len(key)
    words = _UUID_WORDS(key) if length == 36 else struct.unpack_from(f"<{length // 4}I", key)
    digest = _SEED ^ length
    for word in words:
        mixed = word * _M & _WORD
        digest = (digest * _M & _WORD) ^ ((mixed ^ mixed >> 24) * _M & _WORD)
    rest = key[length & ~3 :]
    if rest:
        digest = (digest ^ int.from_bytes(rest, "little")) * _M & _WORD
    digest = (digest ^ digest >> 13) * _M & _WORD
    return digest ^ digest >> 15
