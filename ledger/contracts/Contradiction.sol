// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Msgpack} from "./Msgpack.sol";

/// @title Which two messages of one signer, run and round may not both exist
/// @dev As averaging's evidence has it: rosters of one (round, attempt, head), votes of one sid, hashes of one chunk's
/// sum. Both messages are read to the end, within the bounds of the wire, so that nothing counts here that a peer
/// would refuse to decode.
library Contradiction {
    using Msgpack for bytes;

    uint8 private constant ROSTER = 0x12;
    uint8 private constant VOTE = 0x19;
    uint8 private constant SUM_HASHES = 0x1b;
    uint256 private constant MOST_SEATS = 4096;
    uint256 private constant MOST_CHUNKS = 16_384;

    error NoContradiction();
    error UnknownKind(uint8 tag);

    /// @dev Where the lists of one SumHashes message are.
    struct Sums {
        bytes32 sid;
        uint256 count;
        uint256[] chunks;
        uint256 hashes; // position of the first hash, 34 bytes before the next
    }

    /// @notice The tag of both messages, and the one place that they speak of differently. Reverts when both may stand.
    function check(bytes calldata one, bytes calldata other) internal pure returns (uint8 tag, bytes32 place) {
        tag = uint8(one.byteAt(0));
        if (tag != other.byteAt(0)) revert NoContradiction();
        if (tag == SUM_HASHES) return (tag, _sums(one, other));
        if (tag != ROSTER && tag != VOTE) revert UnknownKind(tag);
        place = tag == ROSTER ? _roster(one) : _vote(one);
        bytes32 again = tag == ROSTER ? _roster(other) : _vote(other);
        if (place != again || keccak256(one) == keccak256(other)) revert NoContradiction();
    }

    function _roster(bytes calldata body) private pure returns (bytes32) {
        uint256 round;
        uint256 attempt;
        bytes32 head;
        uint256 count;
        uint256 offset = body.expect(1, "\x84\xa5round", 7);
        (round, offset) = body.integer(offset, type(uint64).max);
        (attempt, offset) = body.integer(body.expect(offset, "\xa7attempt", 8), type(uint32).max);
        (head, offset) = body.word(body.expect(offset, "\xa4head", 5));
        (count, offset) = body.array(body.expect(offset, "\xa5seats", 6));
        if (count == 0 || count > MOST_SEATS) revert Msgpack.Malformed(offset);
        for (uint256 i = 0; i < count; ++i) {
            offset = body.expect(offset, "\x83\xa4peer\xc4\x27", 8) + 39;
            (, offset) = body.word(body.expect(offset, "\xa4join", 5));
            (, offset) = body.integer(body.expect(offset, "\xa8capacity", 9), type(uint16).max);
        }
        body.end(offset);
        return keccak256(abi.encode(round, attempt, head));
    }

    function _vote(bytes calldata body) private pure returns (bytes32 sid) {
        uint256 offset;
        (sid, offset) = body.word(body.expect(1, "\x84\xa3sid", 5));
        (, offset) = body.integer(body.expect(offset, "\xa9survivors", 10), type(uint64).max);
        (, offset) = body.integer(body.expect(offset, "\xa8reducers", 9), type(uint64).max);
        (, offset) = body.word(body.expect(offset, "\xa9manifests", 10));
        body.end(offset);
    }

    function _sums(bytes calldata one, bytes calldata other) private pure returns (bytes32) {
        Sums memory first = _readSums(one);
        Sums memory second = _readSums(other);
        if (first.sid != second.sid) revert NoContradiction();
        uint256 j = 0;
        for (uint256 i = 0; i < first.count; ++i) {
            // Honest peers list chunks in order, so the next one is nearly always where the last one was found.
            for (uint256 tried = 0; tried < second.count; ++tried) {
                if (first.chunks[i] == second.chunks[j]) {
                    if (_hash(one, first, i) == _hash(other, second, j)) break;
                    return keccak256(abi.encode(first.sid, first.chunks[i]));
                }
                j = j + 1 == second.count ? 0 : j + 1;
            }
        }
        revert NoContradiction();
    }

    function _readSums(bytes calldata body) private pure returns (Sums memory sums) {
        uint256 offset;
        uint256 count;
        (sums.sid, offset) = body.word(body.expect(1, "\x83\xa3sid", 5));
        (sums.count, offset) = body.array(body.expect(offset, "\xa6chunks", 7));
        if (sums.count > MOST_CHUNKS) revert Msgpack.Malformed(offset);
        sums.chunks = new uint256[](sums.count);
        for (uint256 i = 0; i < sums.count; ++i) {
            (sums.chunks[i], offset) = body.integer(offset, type(uint32).max);
        }
        (count, offset) = body.array(body.expect(offset, "\xa6hashes", 7));
        if (count != sums.count) revert Msgpack.Malformed(offset);
        sums.hashes = offset;
        for (uint256 i = 0; i < count; ++i) {
            (, offset) = body.word(offset);
        }
        body.end(offset);
    }

    function _hash(bytes calldata body, Sums memory sums, uint256 index) private pure returns (bytes32 value) {
        (value,) = body.word(sums.hashes + 34 * index);
    }
}
