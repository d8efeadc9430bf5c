"""Who takes part without playing by the rules: liars on their own link, strangers, agents of another age."""

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from edge_agent.adapters.identity import Identity
from federated_core.adapters.link import LinkNews, MessageSent
from federated_core.learning.parameters import Layout
from federated_core.learning.update_codec import encode_update
from federated_core.protocol import messages, topics, wire
from federated_core.protocol.keys import SigningKey, seal, update_context
from tests.simulation.clockwork import Dice
from tests.simulation.network import Network, SimulatedLink

DEVICE_MESSAGES: msgspec.msgpack.Decoder[messages.DeviceMessage] = msgspec.msgpack.Decoder(messages.DeviceMessage)
LINK_LIES = ("wrong-base", "silent-blob")


class LyingLink(SimulatedLink):
    """The link of a device that says something else than it knows."""

    def __init__(
        self,
        network: Network,
        name: str,
        take: Callable[[LinkNews], None],
        queue_max: int,
        signing_secret: bytes,
        lie: str | None,
    ) -> None:
        super().__init__(network, name, take, queue_max)
        self._key = SigningKey(signing_secret)
        self._lie = lie

    def send(self, topic: str, payload: bytes) -> int:
        frame = wire.decode_frame(payload)
        if isinstance(frame, wire.ChunkFrame):
            if self._lie == "silent-blob":
                self.take(MessageSent(-1))
                return -1
        elif self._lie == "wrong-base":
            message = wire.decode_body(frame.body, DEVICE_MESSAGES)
            if isinstance(message, messages.Report):
                other = bytes(reversed(message.base))
                payload = wire.sign_message(self._key, topic, msgspec.structs.replace(message, base=other))
        return super().send(topic, payload)


class Stranger:
    """Speaks on any topic, with a key that nobody knows."""

    def __init__(self, network: Network, dice: Dice, fleet: str, victims: tuple[str, ...]) -> None:
        self._key = SigningKey(dice.token_bytes(32))
        self._network = network
        self._dice = dice
        self._fleet = fleet
        self._victims = victims

    def speak(self, round_number: int, base: bytes) -> None:
        """Say something that nobody should believe."""
        dice = self._dice
        victim = self._victims[dice.below(len(self._victims))]
        up, down = topics.device_up(self._fleet, victim), topics.device_down(self._fleet, victim)
        window = messages.RetryWindow(86_400.0, 86_400.0)
        report = messages.Report("task", round_number, "train", base, 5, messages.Metrics(1, 1, 0.1), None)
        said: list[tuple[str, Any]] = [
            (topics.device_up(self._fleet, "nobody"), messages.CheckIn(dice.token_bytes(8))),
            (up, messages.CheckIn(dice.token_bytes(8))),
            (up, report),
            (up, messages.Abandonment("task", round_number, "deadline")),
            (down, messages.Cancellation("task", round_number, window)),
            (down, messages.Acknowledgement("task", round_number, "accepted", window)),
        ]
        topic, message = said[dice.below(len(said))]
        self._network.hit("stranger")
        self._network.route(topic, wire.sign_message(self._key, topic, message))


class Gatecrasher:
    """An enrolled device that nobody selected, and that reports all the same, as well as anybody could."""

    def __init__(self, network: Network, dice: Dice, identity: Identity, layout: Layout, count_max: int) -> None:
        assert identity.grant is not None
        self._network = network
        self._dice = dice
        self._identity = identity
        self._key = SigningKey(identity.signing_secret)
        self._layout = layout
        self._count_max = count_max
        self._topic = topics.device_up(identity.grant.fleet, identity.grant.device)

    def speak(self, round_number: int, base: bytes) -> None:
        """Report for the newest round."""
        assert self._identity.grant is not None
        fleet, device = self._identity.grant.fleet, self._identity.grant.device
        blob = encode_update(
            np.full(self._layout.update_size, 0.01, np.float32),
            layout_digest=self._layout.digest,
            base_digest=base,
            noise_key=bytes(16),
        )
        context = update_context(fleet, device, "task", round_number, base)
        sealed = seal(self._identity.token.seal_key, blob, context)
        digest = hashlib.sha256(sealed).digest()
        reference = messages.BlobReference(digest, len(sealed))
        metrics = messages.Metrics(1, 1, 0.1)
        report = messages.Report("task", round_number, "train", base, self._count_max, metrics, reference)
        self._network.hit("gatecrasher")
        self._network.route(self._topic, wire.sign_message(self._key, self._topic, report))
        self._network.route(self._topic, wire.chunk_payload(digest, 0, sealed))


class OldAgent:
    """An enrolled device whose agent speaks as nobody speaks any more, or not yet."""

    def __init__(self, network: Network, dice: Dice, fleet: str, name: str, secret: bytes) -> None:
        self._key = SigningKey(secret)
        self._network = network
        self._dice = dice
        self._topic = topics.device_up(fleet, name)

    def speak(self) -> None:
        """Say something in another version of the protocol."""
        dice = self._dice
        bodies: list[tuple[int, Any]] = [
            (0, {"type": "check-in", "check_in_id": dice.token_bytes(8)}),
            (1, {"type": "hello"}),
            (1, {"type": "check-in"}),
            (1, {"type": "check-in", "check_in_id": dice.token_bytes(8), "mood": "good"}),
            (1, {"type": "report", "task": "task", "round": 1}),
            (1, {"type": "chunk-request", "digest": dice.token_bytes(32), "indices": [0, 1, 2]}),
            (1, {"type": "chunk-request", "digest": dice.token_bytes(32), "indices": []}),
        ]
        version, body = bodies[dice.below(len(bodies))]
        data = msgspec.msgpack.encode(body)
        signature = self._key.sign(wire._signed_bytes(self._topic, data))
        self._network.hit("old-agent")
        self._network.route(self._topic, wire.encode_frame(wire.SignedFrame(version, data, signature)))
