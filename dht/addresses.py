"""Multiaddresses as people paste them, checked without asking the network.

`/ip4/203.0.113.5/tcp/31337/p2p/16Uiu2...`: where to dial, then who must answer
(https://github.com/multiformats/multiaddr). Only what libp2p's TCP, QUIC and relay transports need.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from dht.errors import ConfigError, ProtocolError
from dht.identity import PeerId

MAX_TEXT = 512
_CODES = {
    "ip4": 4,
    "tcp": 6,
    "ip6": 41,
    "dns": 53,
    "dns4": 54,
    "dns6": 55,
    "udp": 273,
    "p2p-circuit": 290,
    "p2p": 421,
    "quic-v1": 461,
    "ws": 477,
    "wss": 478,
}
_HOSTS = ("ip4", "ip6", "dns", "dns4", "dns6")
_PLAIN = ("quic-v1", "ws", "wss", "p2p-circuit")
_REMEDY = "an address looks like /ip4/203.0.113.5/tcp/31337/p2p/16Uiu2..."


class AddressError(ConfigError):
    """The text is not a multiaddress that we can use."""

    code = "MUR-110"


@dataclass(frozen=True, slots=True)
class Address:
    """A checked multiaddress: host name or IP, transport ("tcp" or "udp"), port, and who must answer."""

    text: str
    host: str
    transport: str
    port: int
    peer: PeerId | None
    relayed: bool

    @property
    def loopback(self) -> bool:
        """Whether it leads to this machine only."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse(text: str, *, peer: bool = True) -> Address:
    """Check an address; with `peer`, it must name the peer (`/p2p/...`) at its end. Raises AddressError."""
    if not text.startswith("/") or len(text) > MAX_TEXT:
        raise AddressError(f"{text[:80]!r} is not a multiaddr", remedy=_REMEDY)
    found: dict[str, str] = {}
    last = ""
    for protocol, value in _pieces(text):
        _check(text, protocol, value)
        found[protocol] = value
        last = protocol
    host = next((found[name] for name in _HOSTS if name in found), "")
    transport = next((name for name in ("tcp", "udp") if name in found), "")
    if not host or not transport:
        raise AddressError(f"{text!r} has no host and port", remedy=_REMEDY)
    if peer and last != "p2p":
        raise AddressError(f"{text!r} does not say which peer it leads to", remedy="append /p2p/ and the peer id")
    who = PeerId.parse(found["p2p"]) if last == "p2p" else None
    return Address(text, host, transport, int(found[transport]), who, "p2p-circuit" in found)


def encode(text: str) -> bytes:
    """The binary form of a checked address, which the daemon reads."""
    out = bytearray()
    for protocol, value in _pieces(text):
        out += varint(_CODES[protocol])
        if protocol in ("ip4", "ip6"):
            out += ipaddress.ip_address(value).packed
        elif protocol in ("tcp", "udp"):
            out += int(value).to_bytes(2, "big")
        elif protocol not in _PLAIN:
            raw = bytes(PeerId.parse(value)) if protocol == "p2p" else value.encode()
            out += varint(len(raw)) + raw
    return bytes(out)


def varint(value: int) -> bytes:
    """Unsigned LEB128, as multiformats and protobuf write lengths."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    tokens = iter(text[1:].split("/"))
    for protocol in tokens:
        yield protocol, "" if protocol in _PLAIN else next(tokens, "")


def _check(text: str, protocol: str, value: str) -> None:
    try:
        if protocol == "ip4":
            ipaddress.IPv4Address(value)
        elif protocol == "ip6":
            ipaddress.IPv6Address(value)
        elif protocol in ("tcp", "udp"):
            if not (value.isascii() and value.isdigit() and int(value) < 65536):
                raise ValueError(f"port {value!r}")
        elif protocol == "p2p":
            PeerId.parse(value)
        elif protocol not in _PLAIN and not (protocol in _HOSTS and value):
            raise ValueError(f"unknown part {protocol!r}")
    except (ValueError, ProtocolError) as error:
        reason = error.message if isinstance(error, ProtocolError) else str(error)
        raise AddressError(f"{text!r} is not a multiaddr: {reason}", remedy=_REMEDY) from None


def require_free(address: Address) -> None:
    """Raise AddressError if this machine cannot listen there.

    libp2p listens with SO_REUSEPORT: a second daemon on a port in use would start, and steal connections.
    """
    kind = socket.SOCK_STREAM if address.transport == "tcp" else socket.SOCK_DGRAM
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, kind) as probe:
        if kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AddressError(
                    f"port {address.port} is in use", remedy="stop what listens there, or choose another port"
                ) from None
            raise AddressError(
                f"cannot listen on {address.text}: {error.strerror}", remedy="choose an address of this machine"
            ) from None
