"""A process that listens as py-libp2p does by default, but for Noise: who takes plaintext takes it for any peer.

Prints its address, then a line for each connection that it upgraded.
"""

from __future__ import annotations

import sys

import trio
from libp2p import new_host
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.secp256k1 import Secp256k1PrivateKey
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from multiaddr import Multiaddr

from tests.ledger.world import IDENTITIES


async def listen() -> None:
    secret = Secp256k1PrivateKey.from_bytes(IDENTITIES[0].protobuf()[4:])
    keys = KeyPair(secret, secret.get_public_key())
    host = new_host(key_pair=keys, sec_opt={PLAINTEXT_PROTOCOL_ID: InsecureTransport(keys)})
    async with host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        print(host.get_addrs()[0], flush=True)
        while await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            print(len(host.get_network().connections), flush=True)


trio.run(listen)
