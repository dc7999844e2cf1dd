// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Signatures} from "./Signatures.sol";

/// @title Attestors and weights, kept as the code of an account
/// @dev Reading 64 attestors from code costs one access (2,600 gas), from storage one for each (2,100 gas).
/// Layout: STOP, so that nobody can call it; the sum of weights (4 bytes); for each attestor weight (2) and address (20).
library AttestorSet {
    uint256 internal constant MOST = 64;
    uint256 private constant HEADER = 5;
    uint256 private constant ENTRY = 22;

    error BadAttestorCount(uint256 attestors, uint256 weights);
    error BadAttestor(uint256 index);
    error SetNotWritten();
    error UnknownSigner(uint256 bit);
    error BadSigner(uint256 bit);
    error WrongSignatureCount(uint256 words);

    /// @notice Store a set. Addresses differ and are not zero, weights are not zero.
    function write(address[] memory attestors, uint16[] memory weights) internal returns (address pointer) {
        uint256 count = attestors.length;
        if (count == 0 || count > MOST || count != weights.length) revert BadAttestorCount(count, weights.length);
        bytes memory entries;
        uint32 total;
        for (uint256 i = 0; i < count; ++i) {
            if (attestors[i] == address(0) || weights[i] == 0) revert BadAttestor(i);
            // Twice the same key would count its signature twice.
            for (uint256 j = 0; j < i; ++j) {
                if (attestors[i] == attestors[j]) revert BadAttestor(i);
            }
            entries = abi.encodePacked(entries, weights[i], attestors[i]);
            total += weights[i];
        }
        // PUSH2 size DUP1 PUSH1 10 PUSH0 CODECOPY PUSH0 RETURN: returns what follows these ten bytes as code.
        bytes memory init =
            abi.encodePacked(hex"61", uint16(HEADER + entries.length), hex"80600a5f395ff3", hex"00", total, entries);
        assembly ("memory-safe") {
            pointer := create(0, add(init, 32), mload(init))
        }
        if (pointer == address(0)) revert SetNotWritten();
    }

    /// @notice The set as it was written.
    function read(address pointer) internal view returns (address[] memory attestors, uint16[] memory weights) {
        bytes memory code = pointer.code;
        uint256 count = (code.length - HEADER) / ENTRY;
        attestors = new address[](count);
        weights = new uint16[](count);
        for (uint256 i = 0; i < count; ++i) {
            (attestors[i], weights[i]) = _entry(code, i);
        }
    }

    /// @notice Weight of those whose bit is set, each proven by a signature, and weight of all.
    /// @param bitmap bit i stands for attestor i
    /// @param rvs compact signatures, two words for each set bit, lowest bit first
    function signedWeight(address pointer, bytes32 digest, uint64 bitmap, bytes32[] calldata rvs)
        internal
        view
        returns (uint256 signed, uint256 total)
    {
        bytes memory code = pointer.code;
        uint256 count = (code.length - HEADER) / ENTRY;
        uint256 left = bitmap;
        uint256 word = 0;
        for (uint256 i = 0; left != 0; ++i) {
            if (left & 1 == 1) {
                if (i >= count) revert UnknownSigner(i);
                if (word + 2 > rvs.length) revert WrongSignatureCount(rvs.length);
                (address attestor, uint16 weight) = _entry(code, i);
                // An invalid signature recovers to zero, and no attestor is zero.
                if (Signatures.recover(digest, rvs[word], rvs[word + 1]) != attestor) revert BadSigner(i);
                signed += weight;
                word += 2;
            }
            left >>= 1;
        }
        if (word != rvs.length) revert WrongSignatureCount(rvs.length);
        assembly ("memory-safe") {
            total := and(mload(add(code, 5)), 0xffffffff)
        }
    }

    function _entry(bytes memory code, uint256 index) private pure returns (address attestor, uint16 weight) {
        uint256 entry;
        assembly ("memory-safe") {
            // The word that ends where the entry ends: 32 (length) + 5 (header) + 22 (entry) - 32.
            entry := mload(add(code, add(27, mul(index, 22))))
        }
        attestor = address(uint160(entry));
        weight = uint16(entry >> 160);
    }
}
