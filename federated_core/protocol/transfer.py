"""MACHINES for blobs in chunks: `Fetching` asks until nothing is missing, `Sending` never has more than a window out.

::

    Fetching --ChunkStored (last)--> Fetched
        |  ^-- ChunkStored / Quiet: ask for what is missing
        '--Quiet (too often), Unavailable--> Failed

What is held lies on disk with a bitmap (the blob store), so a transfer that was cut off goes on where it stopped, also
after a reboot: the machine starts from what is missing.
"""

import msgspec

FETCH_BATCH = 16  # Chunks asked for at once: 960 KiB, the most that one device makes the aggregator queue for it.
WINDOW = 4  # Chunks handed to the MQTT client and not yet acknowledged by the broker.
SILENCES_MAX = 8


class Chunk(msgspec.Struct, frozen=True, order=True):
    """One chunk of one blob."""

    digest: bytes
    index: int


# --- Fetching: states, events, actions


class Fetching(msgspec.Struct, frozen=True):
    """Chunks are missing; those in ``asked`` were asked for since the last silence."""

    missing: tuple[Chunk, ...]
    asked: tuple[Chunk, ...] = ()
    silence_count: int = 0


class Fetched(msgspec.Struct, frozen=True):
    """Nothing is missing."""


class FetchFailed(msgspec.Struct, frozen=True):
    """It cannot be had."""

    why: str


FetchState = Fetching | Fetched | FetchFailed


class FetchBegan(msgspec.Struct, frozen=True):
    """The first event; ``multicast`` if the chunks come unasked."""

    multicast: bool


class ChunkStored(msgspec.Struct, frozen=True):
    """A chunk arrived, was verified and is on disk."""

    chunk: Chunk


class Quiet(msgspec.Struct, frozen=True):
    """Nothing arrived for the time asked for by the last `AwaitChunks`."""


class Unavailable(msgspec.Struct, frozen=True):
    """The other side does not have it."""


FetchEvent = FetchBegan | ChunkStored | Quiet | Unavailable


class AskFor(msgspec.Struct, frozen=True):
    """Ask for chunks of one blob."""

    digest: bytes
    indices: tuple[int, ...]


class AwaitChunks(msgspec.Struct, frozen=True):
    """Give `Quiet` if no chunk arrives for a while; the while grows with ``silence_count``."""

    silence_count: int


FetchAction = AskFor | AwaitChunks


def step_fetch(state: FetchState, event: FetchEvent) -> tuple[FetchState, tuple[FetchAction, ...]]:
    """Advance a download by one event; an event out of season changes nothing."""
    match state, event:
        case Fetching(missing=()), _:
            return Fetched(), ()
        case Fetching(missing), FetchBegan(multicast=True):
            return Fetching(missing), (AwaitChunks(0),)
        case Fetching(missing), FetchBegan(multicast=False):
            return _ask(missing, 0)
        case Fetching(missing, asked), ChunkStored(chunk):
            missing = tuple(other for other in missing if other != chunk)
            still_asked = tuple(other for other in asked if other != chunk)
            if not missing:
                return Fetched(), ()
            if asked and not still_asked:
                return _ask(missing, 0)
            return Fetching(missing, still_asked), (AwaitChunks(0),)
        case Fetching(_, _, silence_count), Quiet() if silence_count >= SILENCES_MAX:
            return FetchFailed(f"no answer to {SILENCES_MAX} requests"), ()
        case Fetching(missing, _, silence_count), Quiet():
            return _ask(missing, silence_count + 1)
        case Fetching(), Unavailable():
            return FetchFailed("the other side does not have it"), ()
        case _:
            return state, ()


def _ask(missing: tuple[Chunk, ...], silence_count: int) -> tuple[FetchState, tuple[FetchAction, ...]]:
    batch = missing[:FETCH_BATCH]
    digests = dict.fromkeys(chunk.digest for chunk in batch)
    requests = tuple(
        AskFor(digest, tuple(chunk.index for chunk in batch if chunk.digest == digest)) for digest in digests
    )
    return Fetching(missing, batch, silence_count), (*requests, AwaitChunks(silence_count))


# --- Sending: state, events, action


class Outgoing(msgspec.Struct, frozen=True):
    """A chunk and the topic on which it is wanted."""

    topic: str
    chunk: Chunk


class Sending(msgspec.Struct, frozen=True):
    """Chunks that wait in line, and the number that are on their way."""

    waiting: tuple[Outgoing, ...] = ()
    in_flight_count: int = 0


class ChunksWanted(msgspec.Struct, frozen=True):
    """Chunks are wanted on a topic; a chunk that already waits there is sent once."""

    outgoing: tuple[Outgoing, ...]


class ChunkSent(msgspec.Struct, frozen=True):
    """The broker has one chunk."""


SendEvent = ChunksWanted | ChunkSent


class SendChunk(msgspec.Struct, frozen=True):
    """Hand one chunk to the link."""

    outgoing: Outgoing


def step_send(state: Sending, event: SendEvent) -> tuple[Sending, tuple[SendChunk, ...]]:
    """Advance an upload queue by one event."""
    match event:
        case ChunksWanted(outgoing):
            state = Sending(tuple(dict.fromkeys(state.waiting + outgoing)), state.in_flight_count)
        case ChunkSent():
            state = Sending(state.waiting, max(0, state.in_flight_count - 1))
    free = max(0, WINDOW - state.in_flight_count)
    now = state.waiting[:free]
    return Sending(state.waiting[free:], state.in_flight_count + len(now)), tuple(
        SendChunk(outgoing) for outgoing in now
    )
