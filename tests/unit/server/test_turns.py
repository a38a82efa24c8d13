"""Turns of peers without a signed request: how many a step has, and whose they are."""

from __future__ import annotations

import asyncio

from uvicorn.server import ServerState

from server.turns import BYTES_IN_TURN, Act, ReadingInTurns, Turns, turns_of


class Recorded(asyncio.Transport):
    """A transport that notes when it is read and when not."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = True
        self.closing = False

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def is_closing(self) -> bool:
        return self.closing


def noting(done: list[str], name: str, *, counts: bool = True) -> Act:
    def act() -> bool:
        done.append(name)
        return counts

    return act


async def steps(turns: Turns, count: int = 1) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_addresses_take_turns() -> None:
    """Who has many things to do waits behind the first thing of everybody else."""
    turns, done = Turns(asyncio.get_running_loop(), turns_in_step=2), list[str]()
    for number in range(4):
        turns.take("many", noting(done, f"many {number}"))
    turns.take("one", noting(done, "one"))

    await steps(turns)
    assert done == ["many 0", "one"]
    await steps(turns)
    assert done == ["many 0", "one", "many 1", "many 2"]
    await steps(turns, 5)
    assert done[4:] == ["many 3"]
    assert len(turns) == 0


async def test_a_turn_is_never_taken_in_the_step_that_asked_for_it() -> None:
    """An act that takes another turn gets it in a later step: else a step would have no end."""
    turns, done = Turns(asyncio.get_running_loop()), list[str]()

    def again() -> bool:
        done.append("again")
        if len(done) < 100:
            turns.take("a", again)
        return True

    turns.take("a", again)
    await steps(turns)
    assert len(done) <= 8
    await steps(turns, 100)
    assert len(done) == 100


async def test_what_had_nothing_to_do_costs_no_turn() -> None:
    turns, done = Turns(asyncio.get_running_loop(), turns_in_step=1), list[str]()
    for number in range(50):
        turns.take("gone", noting(done, str(number), counts=False))
    turns.take("gone", noting(done, "alive"))
    await steps(turns)
    assert len(done) == 51


async def test_who_sends_much_skips_turns() -> None:
    """An address that was charged for four turns of bytes lets the others have four."""
    turns, done = Turns(asyncio.get_running_loop(), turns_in_step=1), list[str]()
    turns.charge("heavy", 4 * BYTES_IN_TURN)
    for number in range(3):
        turns.take("heavy", noting(done, f"heavy {number}"))
    for number in range(6):
        turns.take("light", noting(done, f"light {number}"))

    await steps(turns, 6)
    assert done == ["light 0", "light 1", "light 2", "light 3", "heavy 0", "light 4"]


async def test_who_is_alone_loses_no_time_by_skipping() -> None:
    """A charge counts against others only, and is forgotten when nobody waits."""
    turns, done = Turns(asyncio.get_running_loop(), turns_in_step=1), list[str]()
    turns.charge("heavy", 100 * BYTES_IN_TURN)
    turns.take("heavy", noting(done, "heavy"))
    await steps(turns)
    assert done == ["heavy"]
    turns.take("heavy", noting(done, "heavy"))
    turns.take("light", noting(done, "light"))
    await steps(turns)
    assert done == ["heavy", "heavy"]


async def test_few_bytes_cost_nothing_more() -> None:
    turns, done = Turns(asyncio.get_running_loop(), turns_in_step=1), list[str]()
    turns.charge("a", BYTES_IN_TURN - 1)
    turns.take("a", noting(done, "a"))
    turns.take("b", noting(done, "b"))
    await steps(turns)
    assert done == ["a"]


async def test_what_is_under_way_comes_before_what_the_address_begins() -> None:
    turns, done = Turns(asyncio.get_running_loop(), turns_in_step=1), list[str]()
    turns.take("a", noting(done, "next"))
    turns.take("a", noting(done, "under way"), before=True)
    await steps(turns, 2)
    assert done == ["under way", "next"]


async def test_a_connection_reads_when_it_is_its_turn() -> None:
    """Asking again while it waits takes no second turn."""
    turns, transport = Turns(asyncio.get_running_loop()), Recorded()
    flow = ReadingInTurns(transport, turns, "a")
    flow.wait_for_a_turn(10, under_way=True)
    assert not transport.reads
    flow.resume_reading()
    flow.resume_reading()
    assert len(turns) == 1
    assert not transport.reads
    await steps(turns)
    assert transport.reads
    flow.resume_reading()
    assert len(turns) == 0


async def test_a_peer_that_has_signed_waits_for_no_turn() -> None:
    turns, transport = Turns(asyncio.get_running_loop()), Recorded()
    flow = ReadingInTurns(transport, turns, "a")
    flow.at_once = True
    flow.pause_reading()
    flow.resume_reading()
    assert transport.reads
    assert len(turns) == 0


async def test_a_connection_that_closes_is_not_read() -> None:
    turns, transport = Turns(asyncio.get_running_loop()), Recorded()
    flow = ReadingInTurns(transport, turns, "a")
    flow.pause_reading()
    flow.resume_reading()
    transport.closing = True
    await steps(turns)
    assert not transport.reads


async def test_a_server_has_one_set_of_turns() -> None:
    state, loop = ServerState(), asyncio.get_running_loop()
    assert turns_of(state, loop) is turns_of(state, loop)
    assert turns_of(ServerState(), loop) is not turns_of(state, loop)
