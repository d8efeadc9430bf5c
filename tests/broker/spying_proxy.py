"""A TCP proxy that counts the publishes a client has out without their acknowledgement."""

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Self

from tests.adapters import mqtt_packets as mqtt


class SpyingProxy:
    """Stands between links and a broker; ``connection_count`` and ``unacknowledged_max`` are over all connections."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._server = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._lock = threading.Lock()
        self.port: int = self._server.getsockname()[1]
        self.connection_count = 0
        self.unacknowledged_max = 0
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._threads[0].join()
        for sock in self._sockets:
            _end(sock)
        for thread in self._threads[1:]:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                try:
                    broker = socket.create_connection(("127.0.0.1", self._target_port))
                except OSError:  # The broker is down, and so are we.
                    client.close()
                    continue
                self.connection_count += 1
                self._sockets += [client, broker]
                open_ids: set[int] = set()
                for source, sink, count in (
                    (client, broker, self._publishes_into(open_ids)),
                    (broker, client, self._pubacks_out_of(open_ids)),
                ):
                    thread = threading.Thread(target=_pump, args=(source, sink, count), daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _publishes_into(self, open_ids: set[int]) -> Callable[[mqtt.Packet], None]:
        def count(packet: mqtt.Packet) -> None:
            if packet.kind == mqtt.PUBLISH:
                with self._lock:
                    open_ids.add(packet.packet_id)
                    self.unacknowledged_max = max(self.unacknowledged_max, len(open_ids))

        return count

    def _pubacks_out_of(self, open_ids: set[int]) -> Callable[[mqtt.Packet], None]:
        def count(packet: mqtt.Packet) -> None:
            if packet.kind == mqtt.PUBACK:
                with self._lock:
                    open_ids.discard(packet.packet_id)

        return count


def _pump(source: socket.socket, sink: socket.socket, count: Callable[[mqtt.Packet], None]) -> None:
    splitter = mqtt.PacketSplitter()
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            for packet in splitter.feed(data):
                count(packet)  # Before it is passed on: an acknowledgement cannot overtake its publish.
            sink.sendall(data)
    _end(source)
    _end(sink)


def _end(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
