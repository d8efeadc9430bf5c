"""A broker that does what a test says, packet by packet: refuses, stalls, withholds, exaggerates."""

import socket
from collections import deque
from typing import Self

from tests.adapters import mqtt_packets as mqtt

DEADLINE_S = 10.0


class Peer:
    """The broker's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.socket.settimeout(DEADLINE_S)
        self._splitter = mqtt.PacketSplitter()
        self._packets: deque[mqtt.Packet] = deque()

    def receive(self, kind: int) -> mqtt.Packet:
        while not self._packets:
            data = self.socket.recv(65536)
            assert data, "the link closed the connection"
            self._packets.extend(self._splitter.feed(data))
        packet = self._packets.popleft()
        assert packet.kind == kind
        return packet

    def has_more(self) -> bool:
        """Say whether a packet of ours is here that was not received yet; what was sent before it has arrived."""
        self.socket.setblocking(False)
        try:
            self._packets.extend(self._splitter.feed(self.socket.recv(1 << 20)))
        except BlockingIOError:
            pass
        finally:
            self.socket.settimeout(DEADLINE_S)
        return bool(self._packets)

    def wait_for_end(self) -> None:
        while self.socket.recv(65536):
            pass

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def welcome(self) -> None:
        """Accept the connection and all of its subscriptions."""
        self.receive(mqtt.CONNECT)
        self.send(mqtt.connack())
        subscribe = self.receive(mqtt.SUBSCRIBE)
        self.send(mqtt.suback(subscribe.packet_id, b"\1" * subscribe.body.count(b"fallow/v1/")))


class ScriptedBroker:
    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(DEADLINE_S)
        self._peers: list[Peer] = []
        self.port: int = self._server.getsockname()[1]

    def accept(self) -> Peer:
        sock, _ = self._server.accept()
        self._peers.append(Peer(sock))
        return self._peers[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for peer in self._peers:
            peer.socket.close()
        self._server.close()
