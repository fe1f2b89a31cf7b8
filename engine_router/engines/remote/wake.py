"""Wake-on-LAN: the magic packet that wakes a machine that sleeps."""

from __future__ import annotations

import socket
from typing import Final

import trio

from engine_router.config.peers import broadcast_address

# The pauses between packets, in seconds: one may be lost, and a card may listen only after a while.
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 10.0


def magic_packet(mac: str) -> bytes:
    """Return the packet that wakes a network card.

    >>> magic_packet("aa:bb:cc:dd:ee:ff")[:8].hex(), len(magic_packet("aa:bb:cc:dd:ee:ff"))
    ('ffffffffffffaabb', 102)
    """
    return b"\xff" * 6 + bytes.fromhex(mac.replace(":", "")) * 16


async def send_magic_packet(mac: str, broadcast: str, interface: str | None) -> None:
    """Send one magic packet.

    Args:
        broadcast: where to, `ADDRESS` or `ADDRESS:PORT`.
        interface: the address of this machine to send from; the system's choice when absent.

    Raises:
        OSError: it cannot be sent.
    """
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if interface is not None:
            await sock.bind((interface, 0))
        await sock.sendto(magic_packet(mac), broadcast_address(broadcast))
