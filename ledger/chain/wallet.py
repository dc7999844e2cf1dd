"""Wallets: a keystore-v3 file and its password, which comes from a file, the environment or the terminal.

Never from the command line, where other users and the shell's history see it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from dht.errors import ConfigError, IdentityError
from ledger import bounded_json

PASSWORD_VARIABLE = "MURMURATION_WALLET_PASSWORD"
_MOST_KEYSTORE_BYTES = 64 * 1024


class Wallet:
    """An account that signs transactions. Its `repr` shows the address alone."""

    def __init__(self, secret: bytes) -> None:
        self._account = _accounts().from_key(secret)
        self.address: str = self._account.address

    def __repr__(self) -> str:
        return f"Wallet({self.address})"

    @property
    def account(self) -> Any:
        """eth-account's object, which holds the key: for other libraries that sign."""
        return self._account

    def sign(self, transaction: dict[str, Any]) -> tuple[bytes, bytes]:
        """Raw bytes and hash of the signed transaction."""
        signed = self._account.sign_transaction(transaction)
        return bytes(signed.raw_transaction), bytes(signed.hash)

    def save(self, path: Path, password: str, *, iterations: int | None = None) -> None:
        """Write a keystore-v3 file (0600); never over another. `iterations`: of scrypt, None for eth-account's own.

        Raises IdentityError when the file exists or cannot be written.
        """
        content = json.dumps(self._account.encrypt(password, iterations=iterations)).encode()
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise IdentityError(f"cannot create {path}: {error.strerror}", remedy="choose another path") from None
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def load(cls, path: Path, password: str) -> Wallet:
        """Open a keystore-v3 file. Raises IdentityError for a wrong password, or a file that is none."""
        try:
            with path.open("rb") as file:
                text = file.read(_MOST_KEYSTORE_BYTES)
        except OSError as error:
            raise IdentityError(
                f"cannot read the wallet {path}: {error.strerror}", remedy="check --keystore and its permissions"
            ) from None
        try:
            keystore = bounded_json.loads(text)
            if not isinstance(keystore, dict) or "crypto" not in {str(key).lower() for key in keystore}:
                raise TypeError
        except (ValueError, TypeError):
            raise IdentityError(f"{path} is no keystore", remedy="a wallet is a keystore file, version 3") from None
        try:
            return cls(bytes(_accounts().decrypt(keystore, password)))
        except ValueError as error:
            if "MAC" in str(error):
                raise IdentityError(f"wrong password for {path}", remedy="try again") from None
            raise IdentityError(f"{path} is no keystore of version 3: {error}", remedy="export it again") from None
        except (KeyError, TypeError, NotImplementedError):
            raise IdentityError(f"{path} is no keystore of version 3", remedy="export it again") from None


def _accounts() -> Any:
    """eth-account, without what importing it does to the whole process (see `ledger.bounded_json`)."""
    with bounded_json.same_recursion_limit():
        from eth_account import Account
    return Account


def read_password(password_file: Path | None = None) -> str:
    """The wallet's password: first line of the file, else the environment's, else asked for on the terminal.

    Raises ConfigError when there is none of these.
    """
    if password_file is not None:
        try:
            return password_file.read_text().split("\n", 1)[0].removesuffix("\r")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {password_file}: {error}", remedy="check --password-file") from None
    if PASSWORD_VARIABLE in os.environ:
        return os.environ[PASSWORD_VARIABLE]
    if not sys.stdin.isatty():
        raise ConfigError("the wallet's password is not known", remedy=f"--password-file, or {PASSWORD_VARIABLE}")
    from getpass import getpass

    return getpass("Password of the wallet: ")
