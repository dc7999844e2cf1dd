"""Keystores and passwords."""

from __future__ import annotations

import json
import stat

import pytest
from eth_account import Account

from dht.errors import ConfigError, IdentityError
from ledger.chain.wallet import PASSWORD_VARIABLE, Wallet, read_password
from tests.ledger.chains import ALICE, SECRETS


@pytest.fixture
def keystore(tmp_path):
    path = tmp_path / "alice.json"
    ALICE.save(path, "secret", iterations=2)
    return path


def test_a_wallet_is_saved_for_its_owner_alone_and_opens_elsewhere(keystore):
    assert stat.S_IMODE(keystore.stat().st_mode) == 0o600
    assert Wallet.load(keystore, "secret").address == ALICE.address
    assert bytes(Account.decrypt(json.loads(keystore.read_text()), "secret")) == SECRETS[0]


def test_what_others_wrote_opens_here(tmp_path):
    path = tmp_path / "other.json"
    path.write_text(json.dumps(Account.encrypt(SECRETS[0], "secret", kdf="pbkdf2", iterations=2)))
    assert Wallet.load(path, "secret").address == ALICE.address


def test_a_wallet_is_never_overwritten(keystore):
    before = keystore.read_bytes()
    with pytest.raises(IdentityError, match="cannot create"):
        Wallet(SECRETS[1]).save(keystore, "other", iterations=2)
    assert keystore.read_bytes() == before


def test_a_wrong_password_is_called_so(keystore):
    with pytest.raises(IdentityError, match="wrong password") as error:
        Wallet.load(keystore, "guess")
    assert error.value.exit_code == 77


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        "[" * 60_000,
        '{"version": 3}',
        '{"crypto": {}, "version": 3}',
        '{"crypto": {}, "version": 9}',
        '{"crypto": 5, "version": 3}',
    ],
)
def test_what_is_no_keystore_is_called_so(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(IdentityError, match="no keystore"):
        Wallet.load(path, "secret")
    with pytest.raises(IdentityError, match="cannot read"):
        Wallet.load(tmp_path / "nowhere", "secret")


def test_a_wallet_does_not_show_its_key():
    shown = f"{ALICE!r} {ALICE} {vars(ALICE)}"
    assert ALICE.address in shown and SECRETS[0].hex() not in shown


def test_where_passwords_come_from(tmp_path, monkeypatch):
    path = tmp_path / "password"
    path.write_text("from the file\r\nsecond line")
    monkeypatch.setenv(PASSWORD_VARIABLE, "from the environment")
    assert read_password(path) == "from the file"
    assert read_password() == "from the environment"
    monkeypatch.delenv(PASSWORD_VARIABLE)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    for known in (None, tmp_path / "nowhere"):
        with pytest.raises(ConfigError):
            read_password(known)


def test_opening_a_wallet_leaves_the_interpreters_limits_alone():
    import subprocess
    import sys

    probe = (
        "import sys; before = sys.getrecursionlimit()\n"
        "from ledger.chain.wallet import Wallet; Wallet(bytes([1]) * 32)\n"
        "assert 'eth_account' in sys.modules and sys.getrecursionlimit() == before"
    )
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0
