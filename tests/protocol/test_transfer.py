"""Both transfer machines, by example and against a world that loses, doubles and reorders chunks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federated_core.protocol import transfer
from federated_core.protocol.transfer import (
    FETCH_BATCH,
    SILENCES_MAX,
    WINDOW,
    AskFor,
    AwaitChunks,
    Chunk,
    ChunkSent,
    ChunkStored,
    ChunksWanted,
    FetchBegan,
    Fetched,
    FetchFailed,
    Fetching,
    Outgoing,
    Quiet,
    SendChunk,
    Sending,
    Unavailable,
    step_fetch,
    step_send,
)

A, B = b"a" * 32, b"b" * 32
TOPIC = "fallow/v1/f/d/d1/up"


def chunks(digest: bytes, *indices: int) -> tuple[Chunk, ...]:
    return tuple(Chunk(digest, index) for index in indices)


def outgoing(*indices: int, topic: str = TOPIC) -> tuple[Outgoing, ...]:
    return tuple(Outgoing(topic, Chunk(A, index)) for index in indices)


# --- Fetching


def test_nothing_is_asked_for_when_nothing_is_missing() -> None:
    for event in (FetchBegan(multicast=True), FetchBegan(multicast=False), Quiet()):
        assert step_fetch(Fetching(()), event) == (Fetched(), ())


def test_a_multicast_is_listened_to_before_it_is_asked_for() -> None:
    missing = chunks(A, 0, 1)
    state, actions = step_fetch(Fetching(missing), FetchBegan(multicast=True))
    assert (state, actions) == (Fetching(missing), (AwaitChunks(0),))
    state, actions = step_fetch(state, ChunkStored(Chunk(A, 1)))
    assert (state, actions) == (Fetching(chunks(A, 0)), (AwaitChunks(0),))
    state, actions = step_fetch(state, Quiet())
    assert actions == (AskFor(A, (0,)), AwaitChunks(1))


def test_one_request_names_the_chunks_of_one_blob() -> None:
    _, actions = step_fetch(Fetching(chunks(A, 0, 1) + chunks(B, 5)), FetchBegan(multicast=False))
    assert actions == (AskFor(A, (0, 1)), AskFor(B, (5,)), AwaitChunks(0))


def test_the_next_batch_is_asked_for_when_the_last_chunk_of_this_one_is_here() -> None:
    missing = chunks(A, *range(FETCH_BATCH + 2))
    state, actions = step_fetch(Fetching(missing), FetchBegan(multicast=False))
    assert actions == (AskFor(A, tuple(range(16))), AwaitChunks(0))
    for index in range(15):
        state, actions = step_fetch(state, ChunkStored(Chunk(A, index)))
        assert actions == (AwaitChunks(0),)
    state, actions = step_fetch(state, ChunkStored(Chunk(A, 15)))
    assert actions == (AskFor(A, (16, 17)), AwaitChunks(0))
    state, _ = step_fetch(state, ChunkStored(Chunk(A, 17)))
    assert step_fetch(state, ChunkStored(Chunk(A, 16))) == (Fetched(), ())


def test_silence_is_answered_with_patience_and_then_with_failure() -> None:
    state, actions = step_fetch(Fetching(chunks(A, 0)), FetchBegan(multicast=False))
    for silence_count in range(1, SILENCES_MAX + 1):
        state, actions = step_fetch(state, Quiet())
        assert actions == (AskFor(A, (0,)), AwaitChunks(silence_count))
    assert step_fetch(state, Quiet()) == (FetchFailed("no answer to 8 requests"), ())


def test_a_chunk_that_arrives_ends_the_silence() -> None:
    state: transfer.FetchState = Fetching(chunks(A, 0, 1, 2), chunks(A, 0, 1, 2), silence_count=SILENCES_MAX)
    state, _ = step_fetch(state, ChunkStored(Chunk(A, 1)))
    assert state == Fetching(chunks(A, 0, 2), chunks(A, 0, 2), silence_count=0)


def test_what_the_other_side_does_not_have_is_not_waited_for() -> None:
    assert step_fetch(Fetching(chunks(A, 0)), Unavailable()) == (FetchFailed("the other side does not have it"), ())


@pytest.mark.parametrize("state", [Fetched(), FetchFailed("why")])
@pytest.mark.parametrize(
    "event",
    [FetchBegan(multicast=True), ChunkStored(Chunk(A, 0)), Quiet(), Unavailable()],
    ids=lambda e: type(e).__name__,
)
def test_a_fetch_that_is_over_stays_over(state: transfer.FetchState, event: transfer.FetchEvent) -> None:
    assert step_fetch(state, event) == (state, ())


class LossyLine:
    """Requests become chunks that get lost, doubled and overtaken; silence is when nothing is on its way."""

    def __init__(self, seed: int, loss: float, duplication: float) -> None:
        self._rng = np.random.default_rng(seed)
        self._loss = loss
        self._duplication = duplication
        self.on_its_way: list[Chunk] = []

    def send(self, wanted: tuple[Chunk, ...]) -> None:
        for chunk in wanted:
            copies = 0 if self._rng.random() < self._loss else 2 if self._rng.random() < self._duplication else 1
            self.on_its_way += [chunk] * copies

    def arrive(self) -> Chunk:
        return self.on_its_way.pop(int(self._rng.integers(len(self.on_its_way))))


@given(
    seed=st.integers(0, 2**32),
    loss=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    duplication=st.sampled_from([0.0, 0.5]),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    multicast=st.booleans(),
)
def test_a_fetch_over_a_bad_line_ends_and_never_asks_for_what_is_held(
    seed: int, loss: float, duplication: float, sizes: list[int], multicast: bool
) -> None:
    everything = tuple(Chunk(bytes([blob]) * 32, index) for blob, size in enumerate(sizes) for index in range(size))
    line = LossyLine(seed, loss, duplication)
    if multicast:
        line.send(everything)
    held: set[Chunk] = set()
    state: transfer.FetchState = Fetching(everything)
    event: transfer.FetchEvent = FetchBegan(multicast)
    turn_count = 0
    while True:
        turn_count += 1
        state, actions = step_fetch(state, event)
        asked = [Chunk(ask.digest, index) for ask in actions if isinstance(ask, AskFor) for index in ask.indices]
        assert not held & set(asked)
        assert len(set(asked)) == len(asked) <= FETCH_BATCH
        if not isinstance(state, Fetching):
            assert actions == ()
            break
        assert set(state.missing) == set(everything) - held
        assert sum(isinstance(action, AwaitChunks) for action in actions) == 1  # Without a timer it would hang.
        line.send(tuple(asked))
        if line.on_its_way:
            chunk = line.arrive()
            held.add(chunk)
            event = ChunkStored(chunk)
        else:
            event = Quiet()
    assert isinstance(state, Fetched) == (held == set(everything))
    if loss == 0.0:
        assert isinstance(state, Fetched)
    if loss == 1.0:
        assert isinstance(state, FetchFailed)
        assert turn_count == 1 + SILENCES_MAX + 1  # The beginning, the silences, the one too many.


# --- Sending


def test_four_chunks_are_on_their_way_at_most() -> None:
    state, actions = step_send(Sending(), ChunksWanted(outgoing(*range(6))))
    assert actions == tuple(SendChunk(one) for one in outgoing(0, 1, 2, 3))
    assert state == Sending(outgoing(4, 5), 4)
    state, actions = step_send(state, ChunkSent())
    assert actions == (SendChunk(outgoing(4)[0]),)
    assert state == Sending(outgoing(5), 4)


def test_a_chunk_that_waits_already_is_sent_once_on_each_topic() -> None:
    waiting = Sending((), WINDOW)
    state, _ = step_send(waiting, ChunksWanted(outgoing(0, 1)))
    state, _ = step_send(state, ChunksWanted(outgoing(1, 2) + outgoing(1, topic="another")))
    assert state.waiting == outgoing(0, 1, 2) + outgoing(1, topic="another")


def test_an_acknowledgement_too_many_opens_no_wider_window() -> None:
    state, actions = step_send(Sending(), ChunkSent())
    assert (state, actions) == (Sending(), ())
    _, actions = step_send(state, ChunksWanted(outgoing(*range(9))))
    assert len(actions) == WINDOW


@given(st.lists(st.one_of(st.lists(st.integers(0, 30), max_size=12), st.just("sent")), max_size=60))
@settings(max_examples=200)
def test_the_window_is_never_exceeded_and_everything_wanted_is_sent(history: list[list[int] | str]) -> None:
    state = Sending()
    in_flight: list[Outgoing] = []
    wanted: set[Outgoing] = set()
    sent: set[Outgoing] = set()

    def advance(event: transfer.SendEvent) -> None:
        nonlocal state
        state, actions = step_send(state, event)
        for action in actions:
            in_flight.append(action.outgoing)
            sent.add(action.outgoing)
        assert len(in_flight) == state.in_flight_count <= WINDOW
        assert len(set(state.waiting)) == len(state.waiting)
        assert not state.waiting or state.in_flight_count == WINDOW  # What could go, went.

    for entry in history:
        if isinstance(entry, list):
            wanted |= set(outgoing(*entry))
            advance(ChunksWanted(outgoing(*entry)))
        elif in_flight:
            in_flight.pop(0)
            advance(ChunkSent())
    while in_flight:
        in_flight.pop(0)
        advance(ChunkSent())
    assert sent == wanted
