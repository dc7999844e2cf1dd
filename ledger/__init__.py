"""What is remembered: tallies, and (by a later package version) their anchor in a contract."""
