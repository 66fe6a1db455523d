"""Where servers of this machine listen, and how their address is written."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress

from distill.errors import UserError

ANYWHERE = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # where whoever is here finds what is everywhere


def taken(host: str, port: int) -> socket.socket:
    """A socket that nobody else has; port 0 stands for any that is free."""
    try:
        family = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        why = str(error.strerror).partition(" (while")[0] if isinstance(error, OSError) else "that is no machine's name"
        raise UserError(f"cannot listen at host={host}, port={port}: {why}; say host= or port=") from error


def address(host: str, port: int) -> str:
    host = ANYWHERE.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def is_here(host: str) -> bool:
    """Whether what is sent there stays on this machine."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
