"""pyrevm as a pure function: one message against the state gives gas, logs, output and the changes it makes.

pyrevm keeps one journal open for its whole life: left alone, accounts stay warm and every slot keeps its first value,
so the second transaction already pays wrong gas. Here the journal is empty before each message (a snapshot, reverted
afterwards) and the state lives in the layer below it. What a message touched is read from the journal.

Differences from the main network, all pyrevm's: BASEFEE reads 0 and BLOCKHASH is not a block's hash inside a contract.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from eth_hash.auto import keccak
from pyrevm import EVM, AccountInfo, BlockEnv, CfgEnv, Env, TxEnv

from dht.errors import ConfigError
from ledger.embedded.state import NO_ACCOUNT, Account, Changes, State
from ledger.embedded.transactions import AccessList, access_list_gas

FORK = "CANCUN"
MOST_BLOCK_GAS = 30_000_000
_PADDING = 33  # zeros that revm's jump analysis appends to code it has created
_TOUCHED_SLOT = re.compile(r"StorageChange \{ address: (0x[0-9a-f]{40}), key: (\d+),")
_DESTROYED = re.compile(r"(0x[0-9a-f]{40}): Account \{ info: (?:(?!status: AccountStatus).)*SelfDestructed", re.DOTALL)
_OUTPUT = re.compile(r"output: (0x[0-9a-f]*)")


@dataclass(frozen=True, slots=True)
class Message:
    """What is executed: a transaction's content, or a call that nobody signed. `gas_price` in wei."""

    sender: bytes
    to: bytes | None
    data: bytes = b""
    value: int = 0
    gas: int = MOST_BLOCK_GAS
    gas_price: int = 0
    access_list: AccessList = ()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The block that a message runs in. `timestamp` in Unix seconds, `base_fee` in wei per gas."""

    number: int
    timestamp: int
    base_fee: int
    coinbase: bytes
    randomness: bytes


@dataclass(frozen=True, slots=True)
class Log:
    """An event: topics of 32 bytes each."""

    address: bytes
    topics: tuple[bytes, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a message ended. `halt` names an exceptional halt (out of gas, …) and is empty for success and revert."""

    success: bool
    gas_used: int
    output: bytes
    logs: tuple[Log, ...]
    created: bytes | None
    changes: Changes
    halt: str = ""


class InvalidMessageError(Exception):
    """The message cannot run at all: too little gas for its data, or more value than its sender has."""


class Engine:
    """Executes messages against `state`, which it shares; every change of the state must also be `load`ed here.

    Raises ConfigError when the installed pyrevm reports its journal in another form than this module reads.
    """

    def __init__(self, state: State, chain_id: int) -> None:
        self._state = state
        self._evm = EVM(Env(cfg=CfgEnv(chain_id=chain_id)), gas_limit=MOST_BLOCK_GAS, spec_id=FORK)
        self._check_engine()
        self.load(Changes(dict(state.accounts), {(address, key): value for address, key, value in state.slots()}))

    def load(self, changes: Changes) -> None:
        """Put new values under the journal."""
        for address, account in changes.accounts.items():
            self._evm.insert_account_info(_hex(address), _info(account))
        for (address, key), value in changes.slots.items():
            # The first insertion goes below the journal and loads the account into it: hence one revert each.
            start = self._evm.snapshot()
            self._evm.insert_account_storage(_hex(address), key, value)
            self._evm.revert(start)

    def run(self, message: Message, around: Surroundings) -> Outcome:
        """Execute without keeping anything: the outcome's `changes` say what to apply. Raises InvalidMessageError."""
        self._evm.set_block_env(
            BlockEnv(
                number=around.number,
                timestamp=around.timestamp,
                coinbase=_hex(around.coinbase),
                prevrandao=around.randomness,
                basefee=around.base_fee,
                gas_limit=MOST_BLOCK_GAS,
                excess_blob_gas=0,
            )
        )
        self._evm.set_tx_env(TxEnv())
        # The coinbase is always in the journal, without an entry that takes it back.
        self._evm.insert_account_info(_hex(around.coinbase), _info(self._state.account(around.coinbase)))
        start = self._evm.snapshot()
        try:
            listed = self._warm(message.access_list)
            output, created, halt = self._execute(replace(message, gas=max(0, message.gas - listed)))
            result = self._evm.result
            assert result is not None
            changes, gas_used = self._changes(), result.gas_used + listed
            self._settle(message, around, result.gas_used, listed, changes)
            logs = tuple(_log(log) for log in result.logs) if result.is_success else ()
            return Outcome(result.is_success, gas_used, output, logs, created, changes, halt)
        finally:
            self._evm.reset_transient_storage()
            self._evm.revert(start)

    def _warm(self, access_list: AccessList) -> int:
        """Touch what is listed; returns the gas that this costs (EIP-2930).

        Given to pyrevm, the list would enter the journal's state without an entry that takes it back.
        """
        for address, keys in access_list:
            self._evm.basic(_hex(address))
            for key in keys:
                self._evm.storage(_hex(address), key)
        return access_list_gas(access_list)

    def _execute(self, message: Message) -> tuple[bytes, bytes | None, str]:
        """Output, created address, and the reason of a halt."""
        fixed: dict[str, Any] = {"value": message.value, "gas": message.gas, "gas_price": message.gas_price}
        try:
            if message.to is None:
                created = bytes.fromhex(self._evm.deploy(_hex(message.sender), message.data, **fixed)[2:])
                return self._code(created), created, ""
            return self._evm.message_call(_hex(message.sender), _hex(message.to), message.data, **fixed), None, ""
        except RuntimeError as error:
            result, text = self._evm.result, str(error)
            if result is None:
                raise InvalidMessageError(text) from None
            if result.is_halt:
                return b"", None, result.reason
            found = _OUTPUT.search(text)
            return bytes.fromhex(found[1][2:]) if found else b"", None, ""

    def _changes(self) -> Changes:
        """Whatever the journal holds that differs from the state."""
        journal = self._evm.journal_str
        gone = {bytes.fromhex(address[2:]) for address in _DESTROYED.findall(journal)}
        changes = Changes()
        for name, info in self._evm.journal_state.items():
            address = bytes.fromhex(name[2:])
            before = self._state.account(address)
            after = NO_ACCOUNT
            if address not in gone:
                same_code = before.code and info.code_hash == keccak(before.code)
                code = before.code if same_code else self._code(address)
                after = Account(info.balance, info.nonce, code)
            if after != before:
                changes.accounts[address] = after
        for name, key in set(_TOUCHED_SLOT.findall(journal)):
            address, slot = bytes.fromhex(name[2:]), int(key)
            value = 0 if address in gone else self._evm.storage(name, slot)
            if value != self._state.slot(address, slot):
                changes.slots[address, slot] = value
        return changes

    def _code(self, address: bytes) -> bytes:
        """Code as it was deployed, without the zeros that revm's analysis appends."""
        info = self._evm.basic(_hex(address))
        if info.code_hash == keccak(b""):
            return b""
        code = bytes(info.code or b"")
        for candidate in (code[:-_PADDING], code):
            if keccak(candidate) == info.code_hash:
                return candidate
        raise RuntimeError(f"the engine reports other code at {_hex(address)} than its hash")

    def _settle(self, message: Message, around: Surroundings, run: int, listed: int, changes: Changes) -> None:
        """Nonce and fees of a transaction that used `run` and `listed` gas.

        pyrevm settles creations only, without what was listed, and burns no base fee.
        """
        settled = run * message.gas_price if message.to is None else 0
        fee = (run + listed) * message.gas_price - settled
        sender = changes.accounts.get(message.sender, self._state.account(message.sender))
        nonce = self._state.account(message.sender).nonce + 1
        changes.accounts[message.sender] = sender._replace(balance=sender.balance - fee, nonce=nonce)
        paid = changes.accounts.get(around.coinbase, self._state.account(around.coinbase))
        tip = (run + listed) * max(0, message.gas_price - around.base_fee)
        balance = paid.balance + tip - settled
        changes.accounts[around.coinbase] = paid._replace(balance=balance)
        if changes.accounts[around.coinbase] == self._state.account(around.coinbase):
            del changes.accounts[around.coinbase]

    def _check_engine(self) -> None:
        """A contract that writes 7 to slot 5 and leaves; the journal must say so."""
        contract = b"\xee" * 20
        self._evm.insert_account_info(_hex(contract), AccountInfo(nonce=1, code=bytes.fromhex("600760055500")))
        start = self._evm.snapshot()
        self._evm.message_call("0x" + "ed" * 20, _hex(contract), b"", gas=100_000)
        seen = set(_TOUCHED_SLOT.findall(self._evm.journal_str))
        self._evm.revert(start)
        self._evm.insert_account_info(_hex(contract), AccountInfo())
        if seen != {(_hex(contract), "5")}:
            raise ConfigError(
                "this version of pyrevm reports state changes in a form that the embedded chain cannot read",
                remedy="install the version that constraints.txt names",
            )


def _info(account: Account) -> AccountInfo:
    return AccountInfo(  # its type stub forgets the balance
        balance=account.balance,  # type: ignore[call-arg]
        nonce=account.nonce,
        code_hash=keccak(account.code),
        code=account.code,
    )


def _hex(address: bytes) -> str:
    return "0x" + address.hex()


def _log(log: Any) -> Log:
    topics, data = log.data
    return Log(bytes.fromhex(log.address[2:]), tuple(bytes(topic) for topic in topics), bytes(data))
