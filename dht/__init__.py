"""Who is out there: identity, wire codec, libp2p host, signed records, discovery."""
