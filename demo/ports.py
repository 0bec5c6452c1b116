"""Ports of 127.0.0.1 for servers that are told their port: nobody else is given them in the meantime."""

from __future__ import annotations

import socket


class ReservedPort:
    """A TCP port that the kernel gives to nobody else until `release`.

    A socket holds it without listening. Another socket may bind the port all the same if both set SO_REUSEADDR, as
    servers do; the kernel never chooses it for a program that asks for any port.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]

    def release(self) -> None:
        """Let anybody have it; a second call does nothing."""
        self._socket.close()
