"""run-peer: data, local training, outer step, state and its root, the round loop."""
