"""What `plant producers set` completes and refuses before anything is asked."""

from __future__ import annotations

import doctest

import click
import pytest
from click.shell_completion import ShellComplete

from operations import operator_actions
from operations.cli.main import cli
from operations.cli.policy_options import BURST, RATE, EventTypes
from schemas.json_events import is_accepted


def completed(*words: str) -> list[str]:
    """What the shell offers for the last word."""
    found = ShellComplete(cli, {}, "plant", "_PLANT_COMPLETE").get_completions(list(words[:-1]), words[-1])
    return [item.value for item in found]


def test_event_types_are_completed_one_after_another() -> None:
    """The first may be `all`; after a comma the next one is offered, with those before it."""
    begun = ("producers", "set", "genesis", "--event-types")
    assert "all" in completed(*begun, "")
    assert all(offered == "all" or is_accepted(offered) for offered in completed(*begun, ""))
    assert completed(*begun, "genesis.agent.rat") == ["genesis.agent.rated"]
    assert completed(*begun, "genesis.agent.rated,genesis.skill.v") == ["genesis.agent.rated,genesis.skill.validated"]


def test_schemes_and_commands_are_completed() -> None:
    """`plant keys rotate --scheme` offers both, `plant producers` its verbs, and a rate its word."""
    assert completed("keys", "rotate", "genesis", "--scheme", "") == ["v1", "v1a"]
    assert completed("producers", "") == ["delete", "disable", "enable", "list", "set", "show"]
    assert completed("producers", "set", "genesis", "--rate", "d") == ["default"]


@pytest.mark.parametrize("text", ["nan", "-nan", "inf", "-1", "0", "1e10", "fast", ""])
def test_a_rate_is_a_number_that_can_be_counted_with(text: str) -> None:
    """Neither rates nor bursts can be none of these."""
    for option in (RATE, BURST):
        with pytest.raises(click.BadParameter):
            option.convert(text, None, None)
    assert (RATE.convert("0.5", None, None), BURST.convert("5", None, None)) == (0.5, 5)
    assert RATE.convert("default", None, None) == "default"


@pytest.mark.parametrize(
    "text", ["", ",", "genesis.agent.rated,", "plant.operation.recorded", "all,genesis.agent.rated"]
)
def test_event_types_are_types_that_come_in(text: str) -> None:
    """Each part of the list is one; white space around it does not matter."""
    with pytest.raises(click.BadParameter):
        EventTypes().convert(text, None, None)
    assert EventTypes().convert(" genesis.agent.rated", None, None) == {"genesis.agent.rated"}


def test_the_docstrings_are_right() -> None:
    """The example in the module holds."""
    assert doctest.testmod(operator_actions).failed == 0
