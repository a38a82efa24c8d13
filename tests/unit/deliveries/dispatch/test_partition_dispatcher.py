"""What others rely on of a dispatcher's bounds."""

from __future__ import annotations

from deliveries.dispatch.partition_dispatcher import PART_RECORDS_MAX
from projections.recovery.consumer_positions import UNACKNOWLEDGED_RECORDS_MAX


def test_a_recovery_goes_back_by_all_that_may_have_been_on_its_way() -> None:
    """However far apart checkpoints are: what is below a part was acknowledged before anything of it was sent."""
    assert PART_RECORDS_MAX <= UNACKNOWLEDGED_RECORDS_MAX
