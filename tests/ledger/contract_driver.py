"""The five contracts and their model side by side: one call goes to both, and both must say the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from benchmarks.contracts import DAY, RUN, STRUCTS, UNIT, Key, RevertedError, Settings, calldata, returned
from ledger.eip712 import Domain, keccak
from ledger.signatures import recover
from tests.ledger.evm import CHAIN_ID, Pyrevm
from tests.ledger.model.hub import RING, Hub
from tests.ledger.model.pool import Pool
from tests.ledger.model.refused import ZERO, Refused, Signature
from tests.ledger.model.registry import Registry
from tests.ledger.model.slashing import Slashing
from tests.ledger.model.token import EVER, Token

SETTINGS = Settings(window=600, min_interval=60, unbond_delay=DAY, verdict_delay=DAY, verdict_period=10 * DAY)
PEER_KEYS = [Key(f"peer {i}") for i in range(8)]
ATTESTOR_KEYS = [Key(f"attestor {i}") for i in range(6)]
STRANGER = Key("a stranger")
SHARE = 100_000 * UNIT
POOR = 5
"""The account that has little, and allows nobody to take it."""
ANY = object()
"""Stands for a value of a refusal that the model does not compute."""
FIRST = 3
"""Attestors at the beginning, each of weight 1: one is a third and two are two thirds, to the unit."""


def found() -> Pyrevm:
    """The contracts with tokens shared out."""
    evm = Pyrevm()
    evm.found(ATTESTOR_KEYS[:FIRST], SETTINGS)
    for account in range(1, 6):
        evm.send("Token", "transfer", evm.accounts[account], SHARE if account != POOR else UNIT)
    for account in range(5):
        for spender in ("PeerRegistry", "RewardPool"):
            evm.send("Token", "approve", evm.at[spender], EVER, sender=account)
    return evm


def word(value: int | bytes | str) -> bytes:
    """One word of an ABI encoding."""
    if isinstance(value, str):
        value = bytes.fromhex(value[2:])
    return value.to_bytes(32, "big") if isinstance(value, int) else value.rjust(32, b"\0")


def struct_hash(kind: str, values: Sequence[int | bytes | str]) -> bytes:
    """EIP-712 hashStruct of one of `STRUCTS`."""
    return keccak(keccak(f"{kind}({STRUCTS[kind]})".encode()) + b"".join(map(word, values)))


class Both:
    """`fired` counts what came of all calls, by (function, refusal or "")."""

    def __init__(self, evm: Pyrevm, fired: Counter[tuple[str, str]]) -> None:
        self.evm, self.fired = evm, fired
        at, accounts = evm.at, evm.accounts
        balances = dict.fromkeys(accounts[1:POOR], SHARE) | {accounts[POOR]: UNIT}
        balances[accounts[0]] = SETTINGS.genesis - sum(balances.values())
        spenders = (at["PeerRegistry"], at["RewardPool"])
        self.token = Token(balances, {(owner, to): EVER for owner in accounts[:POOR] for to in spenders})
        self.registry = Registry(at["PeerRegistry"], self.token, SETTINGS.unbond_delay)
        self.hub = Hub(RUN, SETTINGS, {key.address: 1 for key in ATTESTOR_KEYS[:FIRST]})
        self.pool = Pool(at["RewardPool"], self.token, self.registry, self.hub, evm.treasury, evm.providers)
        self.slashing = Slashing(self.registry, self.hub)

    def do(self, account: int, contract: str, function: str, values: Sequence[Any], model: Callable[[], None]) -> bool:
        """Call both; True when both did it, AssertionError when they differ."""
        try:
            self.evm.send(contract, function, *values, sender=account)
            real: tuple[str, tuple[Any, ...]] = ("", ())
        except RevertedError as error:
            real = (error.name, error.values)
        try:
            model()
            said: tuple[str, tuple[Any, ...]] = ("", ())
        except Refused as refused:
            said = (refused.name, refused.values)
        known = tuple(there if here is ANY else here for here, there in zip(said[1], real[1], strict=False))
        assert real == (said[0], known), f"{function}: the contract says {real}, the model {said}"
        self.fired[f"{contract}.{function}", real[0]] += 1
        return not real[0]

    def digest(self, struct: bytes, contract: str = "CheckpointHub") -> bytes:
        """What is signed of a hashStruct."""
        domain = Domain(CHAIN_ID, bytes.fromhex(self.evm.at[contract][2:]))
        return keccak(b"\x19\x01" + domain.separator() + struct)

    def votes(self, digest: bytes, bits: set[int], flaw: str) -> tuple[int, list[bytes], list[Signature], bool]:
        """Bitmap, words, what the words are, and whether half a signature is too much; the first one may be flawed."""
        attestors, by = list(self.hub.attestors), {key.address: key for key in ATTESTOR_KEYS}
        words: list[bytes] = []
        for place, index in enumerate(sorted(bits)):
            key = by[attestors[index]] if index < len(attestors) else STRANGER
            words += compact(key, digest, flaw if place == 0 else "")
        signatures = [read(digest, words[at : at + 2]) for at in range(0, len(words), 2)]
        if flaw == "short" and words:
            del words[-2:], signatures[-1:]
        odd = flaw == "odd"
        return sum(1 << index for index in bits), [*words, *([b"\1" * 32] if odd else [])], signatures, odd

    def see(self, contract: str, function: str, *values: Any) -> Any:
        """A view. What was asked or answered before is not encoded or decoded again: that costs more than the EVM."""
        return _answer(contract, function, self.evm.view(self.evm.at[contract], _question(contract, function, *values)))

    def compare(self) -> None:
        """Every number that the contracts show."""
        self._compare_hub()
        self._compare_stakes()
        self._compare_tokens()
        self._compare_verdicts()

    def _compare_hub(self) -> None:
        hub, now = self.hub, self.evm.time
        head = (hub.epoch, hub.last.hash, hub.last.last_round, hub.fork_nonce)
        assert self.see("CheckpointHub", "head") == head
        assert self.see("CheckpointHub", "attestors") == (tuple(hub.attestors), tuple(hub.attestors.values()))
        assert self.see("CheckpointHub", "rotationNonce") == hub.rotation_nonce
        oldest = hub.epoch - RING
        for epoch in {oldest, oldest + 1, *range(hub.epoch - 2, hub.epoch + 2)} & set(range(1, hub.epoch + 2)):
            assert self.see("CheckpointHub", "isActive", epoch) == hub.is_active(epoch, now), epoch
            name, _, number, active_at, reward = self.see("CheckpointHub", "slot", epoch)
            kept = hub.kept.get(epoch)
            known = (bytes(32), 0, 0, 0)
            if kept is not None:
                known = (kept.hash, epoch, kept.proposed_at + hub.settings.window, kept.reward)
            assert (name, number, active_at, reward) == known, epoch

    def _compare_stakes(self) -> None:
        for wallet in self.evm.accounts:
            peer = self.registry.peers.get(wallet)
            known = (ZERO, 0, 0, 0, False)
            if peer is not None:
                known = (peer.key, peer.stake, peer.unbonding, peer.unlock_at, peer.jailed)
            assert self.see("PeerRegistry", "peer", wallet) == known, wallet
        for key in PEER_KEYS:
            assert self.see("PeerRegistry", "walletOf", key.address) == self.registry.wallet_of(key.address)
            assert self.see("PeerRegistry", "liable", key.address) == self.registry.liable(key.address, self.evm.time)
        assert self.see("PeerRegistry", "burnable") == self.registry.burnable

    def _compare_tokens(self) -> None:
        pool = self.pool
        assert self.see("Token", "totalSupply") == self.token.supply
        for owner, balance in self.token.balances.items():
            assert self.see("Token", "balanceOf", owner) == balance, owner
        for pair, allowed in self.token.allowances.items():
            assert self.see("Token", "allowance", *pair) == allowed, pair
        for key in PEER_KEYS:
            assert self.see("RewardPool", "claimed", key.address) == pool.claimed.get(key.address, 0)
        numbers = {"fees": pool.fees, "minted": pool.minted, "attestorsDue": pool.attestors_due}
        assert {name: self.see("RewardPool", name) for name in numbers} == numbers
        assert self.see("RewardPool", "funded", self.hub.epoch + 1) == pool.funded(self.hub.epoch + 1)

    def _compare_verdicts(self) -> None:
        for name, (open_, executable_at) in self.slashing.cases.items():
            assert self.see("Slashing", "cases", name) == (1 if open_ else 2, executable_at)
        for wallet in self.evm.accounts:
            assert self.see("Slashing", "periods", wallet) == self.slashing.periods.get(wallet, (0, 0))


_question = lru_cache(2**14)(calldata)
_answer = lru_cache(2**14)(returned)


def compact(key: Key, digest: bytes, flaw: str) -> list[bytes]:
    """A compact signature, or one that is wrong in some way."""
    if flaw == "high":
        return [b"\1" * 32, b"\x7f" + b"\xff" * 31]
    if flaw == "zero":
        return [bytes(32), b"\1" * 32]
    if flaw == "foreign":
        return STRANGER.compact(digest)
    if flaw == "other digest":
        return key.compact(keccak(digest))
    return key.compact(digest)


def read(digest: bytes, words: Sequence[bytes]) -> Signature:
    """What the model is told of a compact signature."""
    if int.from_bytes(words[1], "big") & (2**255 - 1) > HALF_ORDER:
        return Signature(ZERO, high=True)
    signer = recover(digest, b"".join(words))
    return Signature(ZERO if signer is None else f"0x{signer.hex()}")


HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
