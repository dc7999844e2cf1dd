"""An embedded chain: the EVM behind JSON-RPC in one process, kept on disk. One process, no consensus."""
