"""A TCP proxy on loopback that breaks connections, changes bytes and stalls, as told."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

_BLOCK = 262_144


@dataclass
class FaultProxy:
    """What to do to connections; set from the test, read by each connection as it goes."""

    upstream: int
    """Port on loopback that is passed on to."""
    resets: int = 0
    """How many connections to reset …"""
    after: int = 0
    """… each after so many bytes in `direction`."""
    flip_at: int | None = None
    """Byte downstream, counted over a connection, of which one bit is changed; once."""
    direction: str = "down"
    """"up" is what the client sends."""
    trap_after: int | None = None
    """When so many bytes in `direction` have come, over all connections, nothing passes until `trap` was called; once."""
    trap: Callable[[], object] = lambda: None
    refuse: bool = False
    """Close new connections at once."""
    hang: bool = False
    """Take new connections, and never answer."""
    trickle: bool = False
    """Give clients a byte at a time, ten in a second."""
    record: bool = False
    """Keep what clients send, from their next connection on."""
    sent: list[bytearray] = field(default_factory=list)
    """What they sent, a connection each."""
    bytes_up: int = 0
    bytes_down: int = 0
    connections: int = 0
    port: int = 0
    held: list[socket.socket] = field(default_factory=list)
    """Connections that get no answer."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def _pump(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        passed, kept = 0, None
        if self.record and direction == "up":
            kept = bytearray()
            self.sent.append(kept)
        try:
            while data := source.recv(_BLOCK):
                if kept is not None:
                    kept += data
                data = bytearray(data)
                with self._lock:
                    if direction == "up":
                        self.bytes_up += len(data)
                    else:
                        self.bytes_down += len(data)
                        if self.flip_at is not None and passed <= self.flip_at < passed + len(data):
                            data[self.flip_at - passed] ^= 1
                            self.flip_at = None
                    self._spring_trap(direction)
                    if self.resets and direction == self.direction and passed + len(data) > self.after:
                        self.resets -= 1
                        sink.sendall(data[: max(0, self.after - passed)])
                        raise ConnectionResetError
                passed += len(data)
                while self.trickle and direction == "down" and data:
                    sink.sendall(data[:1])
                    del data[:1]
                    time.sleep(0.1)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # whoever waits for an answer is not left waiting
            for end in (source, sink):
                _reset(end)

    def _spring_trap(self, direction: str) -> None:
        passed = self.bytes_up if self.direction == "up" else self.bytes_down
        if direction == self.direction and self.trap_after is not None and passed >= self.trap_after:
            self.trap_after = None
            self.trap()

    def _serve(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                self.connections += 1
                if self.refuse:
                    _reset(client)
                    continue
                if self.hang:
                    self.held.append(client)
                    continue
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        """Pass both directions on until both have ended."""
        try:
            server = socket.create_connection(("127.0.0.1", self.upstream), timeout=10)
        except OSError:  # there is nobody
            _reset(client)
            return
        with client, server:
            server.settimeout(None)
            pumps = [
                threading.Thread(target=self._pump, args=(*ends, direction), daemon=True)
                for *ends, direction in ((client, server, "up"), (server, client, "down"))
            ]
            for pump in pumps:
                pump.start()
            for pump in pumps:
                pump.join()


def _reset(end: socket.socket) -> None:
    """Close with RST, not FIN: SO_LINGER on, for no time."""
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RDWR)  # wakes the other thread
    end.close()


@contextmanager
def proxying(upstream: int) -> Iterator[FaultProxy]:
    """Run a proxy to the port `upstream` on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = FaultProxy(upstream, port=listener.getsockname()[1])
        threading.Thread(target=proxy._serve, args=(listener,), daemon=True).start()
        try:
            yield proxy
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for client in proxy.held:
                client.close()
