"""Multiaddresses: what is accepted, and what is said about the rest."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.addresses import AddressError, encode, parse, require_free
from dht.identity import Identity

PEER = Identity(bytes(31) + b"\x01").peer_id


@pytest.mark.parametrize(
    ("text", "host", "transport", "port"),
    [
        (f"/ip4/203.0.113.5/tcp/31337/p2p/{PEER}", "203.0.113.5", "tcp", 31337),
        (f"/ip6/::1/tcp/1/p2p/{PEER}", "::1", "tcp", 1),
        (f"/dns4/example.org/tcp/443/wss/p2p/{PEER}", "example.org", "tcp", 443),
        (f"/ip4/127.0.0.1/udp/4001/quic-v1/p2p/{PEER}", "127.0.0.1", "udp", 4001),
    ],
)
def test_good_addresses(text: str, host: str, transport: str, port: int) -> None:
    address = parse(text)
    assert (address.host, address.transport, address.port, address.peer) == (host, transport, port, PEER)
    assert not address.relayed


def test_a_relayed_address_leads_to_its_last_peer() -> None:
    relay = Identity(bytes(31) + b"\x02").peer_id
    address = parse(f"/ip4/203.0.113.5/tcp/1/p2p/{relay}/p2p-circuit/p2p/{PEER}")
    assert address.relayed
    assert address.peer == PEER


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("/ip4/127.0.0.1/tcp/4001", "047f000001060fa1"),
        ("/ip6/::1/udp/4001/quic-v1", "29" + "00" * 15 + "01" + "91020fa1cd03"),
        ("/dns4/example.org/tcp/443/wss", "360b" + b"example.org".hex() + "0601bb" + "de03"),
        (f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}/p2p-circuit", "0401020304060001" + "a50327" + PEER.hex() + "a202"),
    ],
)
def test_the_binary_form_is_the_multiformats_one(text: str, code: str) -> None:
    assert encode(text).hex() == code


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a multiaddr"),
        ("example.org:31337", "not a multiaddr"),
        ("/ip4/1.2.3/tcp/1", "not a multiaddr"),
        ("/ip4/127.0.0.1/tcp/65536", "port"),
        ("/ip4/127.0.0.1/tcp/", "port"),
        ("/ip4/127.0.0.1", "no host and port"),
        ("/ip4/127.0.0.1/tcp/1/p2p/QmNotOne", "peer id"),
        ("/ip4/127.0.0.1/smoke/1", "unknown part"),
        ("/ip4/127.0.0.1/tcp/1", "which peer"),
        ("/" + "ip4/127.0.0.1/" * 100, "not a multiaddr"),
    ],
)
def test_bad_addresses_are_explained(text: str, reason: str) -> None:
    with pytest.raises(AddressError, match=reason) as caught:
        parse(text)
    assert caught.value.remedy
    assert caught.value.exit_code == 2


@given(st.text(max_size=60), st.booleans())
def test_any_text_parses_or_is_refused(text: str, slash: bool) -> None:
    try:
        address = parse("/" + text if slash else text, peer=False)
    except AddressError:
        return
    assert address.host


def test_a_port_in_use_is_noticed_even_when_it_may_be_shared() -> None:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = parse(f"/ip4/127.0.0.1/tcp/{holder.getsockname()[1]}", peer=False)
        with pytest.raises(AddressError, match="in use"):
            require_free(taken)
    require_free(taken)
    with pytest.raises(AddressError, match="cannot listen"):
        require_free(parse("/ip4/192.0.2.77/tcp/0", peer=False))
