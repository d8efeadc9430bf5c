"""Updates as they come in: chunks to disk, then the seal, then the gate; the verdict is all that goes on."""

from typing import Any

from cloud_aggregator.training_round import RoundHead
from federated_core.adapters.blob_store import BlobStore
from federated_core.adapters.blob_transfer import BlobReceiver
from federated_core.adapters.inbox import Inbox
from federated_core.errors import AdapterError, RemoteProtocolError
from federated_core.learning.clipping import gate_step
from federated_core.learning.update_codec import DecodedUpdate, decode_update
from federated_core.protocol import keys, transfer
from federated_core.protocol.messages import BlobReference, Report, Verdict
from federated_core.protocol.wire import ChunkFrame

FETCH_TIMER = "chunks/"
NORM_REFUSAL_MULTIPLE = 4.0  # An update this many times beyond the norm that an honest one can have is refused.
UPDATE_STEP_MAX = 1.0  # Levels wider than this are no fine-tuning of anything; sums in fixed point rely on the bound.


class UpdateIntake:
    """The uploads of one fleet; a device can write only into what it announced itself."""

    def __init__(
        self, fleet: str, blobs: BlobStore, inbox: Inbox[Any], sealing_key: keys.SealingKey, quiet_s: float
    ) -> None:
        self._fleet = fleet
        self._blobs = blobs
        self._inbox = inbox
        self._sealing_key = sealing_key
        self._quiet_s = quiet_s
        self._receiver = BlobReceiver(blobs)
        self._transfers: dict[str, transfer.FetchState] = {}

    def expect(self, device: str, update: BlobReference) -> bool:
        """Begin or resume an upload; True if it is whole already. AdapterError if there is no room."""
        missing = self._receiver.expect([update], device)
        self._transfers[device] = transfer.Fetching(missing)
        return self._advance(device, transfer.FetchBegan(multicast=True)) is None

    def take(self, device: str, frame: ChunkFrame) -> bool:
        """Store a chunk; True if it made the announced update whole. RemoteProtocolError if that has another digest."""
        stored = self._receiver.store(frame, device)
        if stored is None or device not in self._transfers:
            return False
        self._advance(device, transfer.ChunkStored(stored[0]))
        return stored[1]

    def note_silence(self, device: str) -> tuple[transfer.AskFor, ...] | None:
        """Return what to ask ``device`` for, None if it has been silent too often."""
        return self._advance(device, transfer.Quiet())

    def forget(self, device: str) -> None:
        """Expect nothing from ``device`` any more."""
        self._transfers.pop(device, None)
        self._inbox.cancel_timer(FETCH_TIMER + device)
        self._receiver.forget(device)

    def judge(
        self, device: str, report: Report, head: RoundHead, parameter_count: int, layout_digest: bytes
    ) -> Verdict:
        """Open and decode an update that is whole, and say whether it may count."""
        try:
            digest = report.update.digest if report.update else b""
            update = self._decode(device, digest, head, parameter_count, layout_digest)
        except RemoteProtocolError as error:
            return "not-finite" if "finite" in str(error) else "malformed"
        except AdapterError:
            return "digest-mismatch"
        try:
            update = _bound_norm(update, head)
        except RemoteProtocolError:
            return "too-large"
        return "too-large" if update.step > UPDATE_STEP_MAX else "accepted"

    def read(
        self, device: str, digest: bytes, head: RoundHead, parameter_count: int, layout_digest: bytes
    ) -> DecodedUpdate:
        """Return the update ``digest`` of ``device``, opened, decoded and held to the plan's norm."""
        return _bound_norm(self._decode(device, digest, head, parameter_count, layout_digest), head)

    def _decode(
        self, device: str, digest: bytes, head: RoundHead, parameter_count: int, layout_digest: bytes
    ) -> DecodedUpdate:
        context = keys.update_context(self._fleet, device, head.task, head.number, head.base)
        blob = self._sealing_key.open(self._blobs.get(digest.hex()), context)
        return decode_update(
            blob,
            parameter_count=parameter_count,
            layout_digest=layout_digest,
            base_digest=head.base,
            size_max=head.settings.update_bytes_max,
            step_per_rms=head.plan.step_ratio,
        )

    def _advance(self, device: str, event: transfer.FetchEvent) -> tuple[transfer.AskFor, ...] | None:
        """Return the requests to send, None if the transfer is over (whole or failed)."""
        state, actions = transfer.step_fetch(self._transfers.get(device, transfer.Fetched()), event)
        self._transfers[device] = state
        requests: list[transfer.AskFor] = []
        for action in actions:
            match action:
                case transfer.AskFor():
                    requests.append(action)
                case transfer.AwaitChunks(silence_count):
                    self._inbox.set_timer(FETCH_TIMER + device, self._quiet_s * 2.0**silence_count)
        if not isinstance(state, transfer.Fetching):
            self._inbox.cancel_timer(FETCH_TIMER + device)
            return None
        return tuple(requests)


def _bound_norm(update: DecodedUpdate, head: RoundHead) -> DecodedUpdate:
    """Clip an update that is longer than the plan allows by a smaller step; RemoteProtocolError if it is far longer."""
    plan = head.plan
    if plan.delta_norm_max is None:
        return update
    step = gate_step(
        update.step,
        update.symbols,
        norm_max=plan.delta_norm_max,
        step_per_rms=plan.step_ratio,
        refusal_multiple=NORM_REFUSAL_MULTIPLE,
    )
    return DecodedUpdate(step, update.symbols)
