"""`python -m peer.demo`: a whole swarm on this machine, with one peer killed and brought back."""
