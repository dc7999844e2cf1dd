"""run-bootstrap: a DHT entry point and relay. Trains nothing, decides nothing."""
