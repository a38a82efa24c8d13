"""Errors that end aiokafka's fetching in the background, since it does not expect them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from aiokafka.consumer.fetcher import Fetcher


def fail_fetches(
    monkeypatch: pytest.MonkeyPatch, times: int, when: Callable[[], object] = lambda: True
) -> Callable[[], bool]:
    """Let so many fetches raise one, from the first on for which `when` says yes; whether all of them have."""
    left = times
    real = Fetcher._proc_fetch_request

    async def faulty(fetcher: Fetcher, *arguments: object) -> bool:
        nonlocal left
        if left and when():
            left -= 1
            raise AssertionError("seen in aiokafka")
        return bool(await real(fetcher, *arguments))

    monkeypatch.setattr(Fetcher, "_proc_fetch_request", faulty)
    return lambda: left == 0
