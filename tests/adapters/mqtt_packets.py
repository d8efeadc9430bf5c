"""The few MQTT 3.1.1 packets that a scripted broker and a spying proxy must read and write."""

import dataclasses
import struct

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, PINGREQ, DISCONNECT = 1, 2, 3, 4, 8, 9, 12, 14


@dataclasses.dataclass(frozen=True, slots=True)
class Packet:
    kind: int
    flags: int
    body: bytes

    @property
    def packet_id(self) -> int:
        if self.kind != PUBLISH:
            return int.from_bytes(self.body[:2], "big")
        start = 2 + int.from_bytes(self.body[:2], "big")
        return int.from_bytes(self.body[start : start + 2], "big")

    @property
    def payload(self) -> bytes:
        return self.body[4 + int.from_bytes(self.body[:2], "big") :]


def encode(kind: int, body: bytes, flags: int = 0) -> bytes:
    return bytes([kind << 4 | flags]) + encode_length(len(body)) + body


def encode_length(length: int) -> bytes:
    digits = []
    while True:
        length, digit = divmod(length, 128)
        digits.append(digit | 128 if length else digit)
        if not length:
            return bytes(digits)


def connack(code: int = 0) -> bytes:
    return encode(CONNACK, bytes([0, code]))


def suback(packet_id: int, codes: bytes) -> bytes:
    return encode(SUBACK, struct.pack(">H", packet_id) + codes)


def puback(packet_id: int) -> bytes:
    return encode(PUBACK, struct.pack(">H", packet_id))


def publish(topic: bytes, payload: bytes) -> bytes:
    return encode(PUBLISH, struct.pack(">H", len(topic)) + topic + payload)


class PacketSplitter:
    """Cuts a stream of bytes into packets, however it was cut before."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[Packet]:
        self._buffer += data
        packets = []
        while (packet_and_rest := self._split()) is not None:
            packet, self._buffer = packet_and_rest
            packets.append(packet)
        return packets

    def _split(self) -> tuple[Packet, bytes] | None:
        length = shift = 0
        for position, byte in enumerate(self._buffer[1:5], 1):
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                start, end = position + 1, position + 1 + length
                if len(self._buffer) < end:
                    return None
                first = self._buffer[0]
                return Packet(first >> 4, first & 15, self._buffer[start:end]), self._buffer[end:]
        return None
