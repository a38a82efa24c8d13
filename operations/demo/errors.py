"""What can keep the demo from its end."""

from __future__ import annotations

from runtime.errors import CheckFailed, PlantError


class DemoFailed(PlantError):
    """The demo can't go on."""


class ServiceEnded(DemoFailed):
    """A process that the demo started has ended before its time."""


class NotAsPromised(DemoFailed, CheckFailed):
    """The demo ran, but something it shows is not so."""
