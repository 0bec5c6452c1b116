"""Ports that are kept for a server."""

from __future__ import annotations

import socket

import pytest

from demo.ports import ReservedPort


def test_a_reserved_port_is_for_a_server_alone() -> None:
    """A program that takes any port does not get it; a server that names it does, again and again, until the end."""
    reserved = ReservedPort()
    address = ("127.0.0.1", reserved.number)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(address)
    for _ in range(2):
        with socket.create_server(address) as server, socket.create_connection(address):
            assert server.accept()[1][0] == "127.0.0.1"
    reserved.release()
    reserved.release()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(address)
