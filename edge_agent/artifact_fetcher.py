"""Fetching the artifacts of one assignment: `transfer.Fetching` between the blob store and the aggregator."""

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from federated_core.adapters.blob_store import BlobStore
from federated_core.adapters.blob_transfer import BlobReceiver
from federated_core.adapters.inbox import Inbox
from federated_core.errors import RemoteProtocolError
from federated_core.protocol import messages, transfer
from federated_core.protocol.wire import ChunkFrame

_log = logging.getLogger(__name__)

MULTICAST_GRACE_S = 1.0  # Multicast chunks that did not come within this time are asked for.
SILENCE_MAX_S = 30.0
EARLY_BYTES_MAX = 128 * 1024

FetchResult = Literal["whole", "failed"] | None


class ArtifactFetcher:
    """One download at a time; sets one timer of the inbox."""

    def __init__(
        self,
        blobs: BlobStore,
        inbox: Inbox[Any],
        send: Callable[[messages.ChunkRequest], None],
        timer: str = "quiet",
    ) -> None:
        """Store in ``blobs`` what is asked for by ``send``; `note_silence` belongs to ``timer``."""
        self._timer = timer
        self._receiver = BlobReceiver(blobs)
        self._inbox = inbox
        self._send = send
        self._state: transfer.FetchState = transfer.Fetched()
        self._early: deque[ChunkFrame] = deque()

    def begin(self, artifacts: tuple[messages.Artifact, ...]) -> FetchResult:
        """Fetch what of ``artifacts`` is not on disk; AdapterError if there is no room for it."""
        missing = self._receiver.expect(artifact.blob for artifact in artifacts)
        self._state = transfer.Fetching(missing)
        wanted = {chunk.digest for chunk in missing}
        is_multicast = all(artifact.multicast for artifact in artifacts if artifact.blob.digest in wanted)
        result = self._advance(transfer.FetchBegan(is_multicast))
        early, self._early = self._early, deque()
        for frame in early:
            result = self.take(frame) or result
        return result

    def take(self, frame: ChunkFrame) -> FetchResult:
        """Store a chunk; one that nobody waits for is kept for a while, and then forgotten."""
        try:
            stored = self._receiver.store(frame)
        except RemoteProtocolError as error:
            _log.warning("%s", error)  # Somebody tampered: nothing of this blob is to be trusted.
            return self._advance(transfer.Unavailable())
        if stored is None:
            self._remember(frame)
            return None
        return self._advance(transfer.ChunkStored(stored[0]))

    def is_fetching(self, digest: bytes) -> bool:
        """Say whether chunks of this blob are awaited."""
        return isinstance(self._state, transfer.Fetching) and any(
            chunk.digest == digest for chunk in self._state.missing
        )

    def note_silence(self) -> FetchResult:
        """Nothing came for a while: ask again."""
        return self._advance(transfer.Quiet())

    def give_up(self) -> None:
        """Expect nothing any more; what arrived stays on disk for the next time."""
        self._state = transfer.Fetched()

    def _remember(self, frame: ChunkFrame) -> None:
        """Keep a chunk that nobody waits for yet: a multicast may overtake the assignment that it belongs to."""
        self._early.append(frame)
        while sum(len(kept.data) for kept in self._early) > EARLY_BYTES_MAX:
            self._early.popleft()

    def _advance(self, event: transfer.FetchEvent) -> FetchResult:
        if isinstance(self._state, transfer.Fetched):
            return None
        self._state, actions = transfer.step_fetch(self._state, event)
        for action in actions:
            match action:
                case transfer.AskFor(digest, indices):
                    self._send(messages.ChunkRequest(digest, indices))
                case transfer.AwaitChunks(silence_count):
                    self._inbox.set_timer(self._timer, min(SILENCE_MAX_S, MULTICAST_GRACE_S * 2.0**silence_count))
        match self._state:
            case transfer.Fetched():
                return "whole"
            case transfer.FetchFailed():
                return "failed"
            case _:
                return None
