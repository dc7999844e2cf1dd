// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

/// @title Reads canonical msgpack, the little of it that evidence needs
/// @dev Each function takes a position and returns the one behind what it read. What the wire codec would refuse (a
/// longer form than needed, another type, an end too early) reverts: an honest peer signs no such thing.
/// https://github.com/msgpack/msgpack/blob/master/spec.md
library Msgpack {
    error Malformed(uint256 position);

    /// @notice Demand the first `size` bytes of a literal, at most 32.
    function expect(bytes calldata data, uint256 offset, bytes32 literal, uint256 size)
        internal
        pure
        returns (uint256 next)
    {
        next = offset + size;
        if (next > data.length || bytes32(data[offset:next]) != literal) revert Malformed(offset);
    }

    /// @notice An unsigned integer in its shortest form, not above `most`.
    function integer(bytes calldata data, uint256 offset, uint256 most) internal pure returns (uint256 value, uint256 next) {
        uint256 tag = byteAt(data, offset);
        if (tag < 0x80) {
            (value, next) = (tag, offset + 1);
        } else {
            if (tag < 0xcc || tag > 0xcf) revert Malformed(offset);
            uint256 size = 1 << (tag - 0xcc); // 1, 2, 4 or 8 bytes follow
            next = offset + 1 + size;
            if (next > data.length) revert Malformed(offset);
            value = uint256(bytes32(data[offset + 1:next])) >> (256 - 8 * size);
            uint256 least = size == 1 ? 0x80 : 1 << (4 * size); // what half the bytes could not hold
            if (value < least) revert Malformed(offset);
        }
        if (value > most) revert Malformed(offset);
    }

    /// @notice 32 bytes, as msgpack's bin 8.
    function word(bytes calldata data, uint256 offset) internal pure returns (bytes32 value, uint256 next) {
        next = expect(data, offset, hex"c420", 2) + 32;
        if (next > data.length) revert Malformed(offset);
        value = bytes32(data[offset + 2:next]);
    }

    /// @notice Number of items of an array of at most 65,535, in its shortest form.
    function array(bytes calldata data, uint256 offset) internal pure returns (uint256 count, uint256 next) {
        uint256 tag = byteAt(data, offset);
        if (tag & 0xf0 == 0x90) return (tag & 0x0f, offset + 1);
        next = offset + 3;
        if (tag != 0xdc || next > data.length) revert Malformed(offset);
        count = uint16(bytes2(data[offset + 1:next]));
        if (count < 16) revert Malformed(offset);
    }

    /// @notice Demand that the message ends here.
    function end(bytes calldata data, uint256 offset) internal pure {
        if (offset != data.length) revert Malformed(offset);
    }

    function byteAt(bytes calldata data, uint256 offset) internal pure returns (uint256) {
        if (offset >= data.length) revert Malformed(offset);
        return uint8(data[offset]);
    }
}
