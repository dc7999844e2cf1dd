// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Signatures} from "./Signatures.sol";

/// @title What a peer's signature on an averaging message covers
/// @dev Docs/protocol.md: SHA-256 over the domain and, each behind its length, run, round, sender and message frame.
library Envelope {
    /// @dev Before the compressed key in a libp2p peer id: identity multihash of 37 bytes, protobuf of a secp256k1 key.
    bytes6 private constant PEER_ID = hex"002508021221";

    /// @notice The signed digest of one message frame of the peer with public key (x, y).
    function digest(bytes32 run, uint64 round, bytes32 x, bytes32 y, bytes calldata body)
        internal
        pure
        returns (bytes32)
    {
        return sha256(
            bytes.concat(
                abi.encodePacked("murmuration/1/envelope", bytes1(0), uint64(32), run, uint64(8), round),
                abi.encodePacked(uint64(39), PEER_ID, Signatures.prefixOf(y), x, uint64(body.length), body)
            )
        );
    }
}
