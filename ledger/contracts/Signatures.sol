// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

/// @title secp256k1 signatures, without their malleable twins
library Signatures {
    /// @dev Half the order of the group. (r, n - s) is valid whenever (r, s) is: only the lower s counts (EIP-2).
    uint256 private constant HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0;

    error HighS();

    /// @notice Signer of a compact signature (EIP-2098); the zero address when there is none, so compare with a known one.
    function recover(bytes32 digest, bytes32 r, bytes32 vs) internal pure returns (address) {
        uint256 s = uint256(vs) & (type(uint256).max >> 1);
        if (s > HALF_ORDER) revert HighS();
        return ecrecover(digest, uint8(uint256(vs) >> 255) + 27, r, bytes32(s));
    }

    /// @notice Whether `key` made the signature (r, s), which does not say the parity of its point: libp2p's form.
    function isBy(address key, bytes32 digest, bytes32 r, bytes32 s) internal pure returns (bool) {
        if (uint256(s) > HALF_ORDER) revert HighS();
        if (key == address(0)) return false;
        return ecrecover(digest, 27, r, s) == key || ecrecover(digest, 28, r, s) == key;
    }

    /// @notice EVM address of a public key.
    function addressOf(bytes32 x, bytes32 y) internal pure returns (address) {
        return address(uint160(uint256(keccak256(abi.encodePacked(x, y)))));
    }

    /// @notice First byte of the compressed form of a public key: 2 for an even y, 3 for an odd one.
    function prefixOf(bytes32 y) internal pure returns (uint8) {
        return uint8(2 + (uint256(y) & 1));
    }
}
