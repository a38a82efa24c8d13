"""The log behind an address: what is raised where nothing answers."""

from __future__ import annotations

import pytest

from audit.verifier.chains import read_heads
from database.errors import DatabaseUnreachable


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://u:secret@127.0.0.1:1/d", "127.0.0.1:1/d as u"),
        ("postgresql://u:secret@127.0.0.1:1,127.0.0.1:1/d", "127.0.0.1:1,127.0.0.1:1/d as u"),
    ],
    ids=["one server", "several"],
)
def test_an_unreachable_log_is_no_verdict(address: str, shown: str) -> None:
    """The error names the address without its password, and no form of the address hides that nothing answers."""
    with pytest.raises(DatabaseUnreachable) as caught:
        read_heads(address)
    assert caught.value.why == f"{shown}: nothing listens there."
    assert caught.value.exit_code == 4
