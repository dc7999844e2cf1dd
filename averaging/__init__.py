"""One round, from tensors to an agreed sum: encode, mask, exchange, certify, unmask."""
