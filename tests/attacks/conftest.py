"""Real libp2p hosts for the attacks on the network."""

from tests.dht.conftest import start_host, until

__all__ = ["start_host", "until"]
