// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

/// @notice What a quorum signs about one epoch. No block data: signatures outlive a reorganisation of the chain.
struct Checkpoint {
    bytes32 runId;
    uint64 forkNonce; // counts rollbacks
    uint64 epoch; // 1, 2, ...
    bytes32 parent; // hashStruct of the checkpoint before; zero for the first
    uint64 firstRound;
    uint64 lastRound;
    bytes32 modelRoot; // state root of the record of lastRound
    bytes32 dataRoot; // Merkle root over the hashes of the records firstRound ... lastRound
    bytes32 tallyRoot; // StandardMerkleTree root over (address key, uint256 cumulative)
    uint128 cumulativeReward; // sum of all leaves, in token units
    uint64 peers; // leaves of the tally
    uint128 tokens; // training tokens since the founding
}

/// @title EIP-712 hashes of what attestors sign for the hub
library CheckpointHash {
    bytes32 internal constant CHECKPOINT = keccak256(
        "Checkpoint(bytes32 runId,uint64 forkNonce,uint64 epoch,bytes32 parent,uint64 firstRound,uint64 lastRound,bytes32 modelRoot,bytes32 dataRoot,bytes32 tallyRoot,uint128 cumulativeReward,uint64 peers,uint128 tokens)"
    );
    bytes32 internal constant ROLLBACK = keccak256("Rollback(bytes32 runId,uint64 forkNonce,uint64 epoch)");
    bytes32 internal constant ROTATION = keccak256("Rotation(bytes32 runId,uint64 nonce,bytes32 attestors)");

    /// @notice hashStruct of a checkpoint: its name, and the parent of the next one.
    function hash(Checkpoint calldata header) internal pure returns (bytes32) {
        return keccak256(abi.encode(CHECKPOINT, header));
    }
}
