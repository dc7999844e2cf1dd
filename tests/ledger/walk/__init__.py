"""Random calls of the contracts, good and bad ones: rules of a state machine, a file for each contract."""
