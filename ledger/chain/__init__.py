"""How Python talks to a chain: nodes, deployments, wallets, and transactions that land exactly once."""
