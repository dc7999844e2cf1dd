"""What the contracts promise, in plain Python: the same calls, the same refusals, no EVM, no bytes.

Every method checks all before it changes anything, in the contract's order, and raises `Refused` with the name and the
values of the contract's error. Addresses are 0x-prefixed lower-case text, amounts 1e-18 tokens, times Unix seconds.
"""
