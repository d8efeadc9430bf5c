"""Chunks on their way out: `transfer.Sending` at the link, so that no blob is ever held in memory as a whole."""

import logging
from collections.abc import Callable

from federated_core.adapters.blob_store import BlobStore
from federated_core.adapters.blob_transfer import read_chunk
from federated_core.adapters.link import Link
from federated_core.errors import AdapterError
from federated_core.protocol.transfer import Chunk, ChunkSent, ChunksWanted, Outgoing, SendEvent, Sending, step_send
from federated_core.protocol.wire import chunk_payload

_log = logging.getLogger(__name__)


class ChunkSender:
    """Sends wanted chunks, a window at a time; the owner of the loop tells it what the broker acknowledged."""

    def __init__(self, link: Link, store: BlobStore, note: Callable[[Outgoing, int], None] | None = None) -> None:
        """Send by ``link``; ``note`` hears of every chunk that goes out, with its payload's bytes."""
        self._link = link
        self._note = note
        self._store = store
        self._state = Sending()
        self._tickets: set[int] = set()

    def want(self, topic: str, chunks: tuple[Chunk, ...]) -> None:
        """Send ``chunks`` on ``topic`` when it is their turn."""
        self._advance(ChunksWanted(tuple(Outgoing(topic, chunk) for chunk in chunks)))

    def sent(self, ticket: int) -> None:
        """Note that the broker has a message; one that was no chunk changes nothing."""
        if ticket in self._tickets:
            self._tickets.discard(ticket)
            self._advance(ChunkSent())

    def _advance(self, event: SendEvent) -> None:
        self._state, actions = step_send(self._state, event)
        for action in actions:
            outgoing = action.outgoing
            try:
                self._send(outgoing)
            except AdapterError as error:
                _log.warning("chunk not sent, it will be asked for again: %s", error)
                self._advance(ChunkSent())

    def _send(self, outgoing: Outgoing) -> None:
        data = read_chunk(self._store, outgoing.chunk)
        if data is None:
            raise AdapterError(f"no chunk {outgoing.chunk.index} of {outgoing.chunk.digest.hex()} any more")
        payload = chunk_payload(outgoing.chunk.digest, outgoing.chunk.index, data)
        self._tickets.add(self._link.send(outgoing.topic, payload))
        if self._note is not None:
            self._note(outgoing, len(payload))
