"""Calls of CheckpointHub."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from benchmarks.contracts import RUN, UNIT, Key
from ledger.eip712 import keccak
from ledger.standard_merkle import StandardMerkleTree
from tests.ledger.contract_driver import ATTESTOR_KEYS, PEER_KEYS, struct_hash, word
from tests.ledger.model.hub import Slot
from tests.ledger.model.refused import ZERO
from tests.ledger.walk.base import EVM, Chosen, Walk, bits, flaws

PLACES = ("runId", "forkNonce", "forkNonce", "epoch", "parent", "firstRound", "lastRound")


class Checkpoints(Walk):
    """Checkpoints, rollbacks, rotations."""

    def __init__(self) -> None:
        super().__init__()
        self.trees: dict[int, tuple[dict[str, int], StandardMerkleTree]] = {}
        self.honest: dict[bytes, dict[str, int]] = {}
        """Leaves of each checkpoint without its lie: on them the next one builds."""

    @rule(
        pause=st.sampled_from([60, 60, 0, 600, 0]),
        flaw=st.sampled_from([*[""] * 20, *PLACES]),
        gains=st.lists(st.sampled_from([0, 1, 100 * UNIT, 250 * UNIT]), min_size=4, max_size=4),
        reward=st.sampled_from([*[0] * 12, -1, *[-(10**22)] * 3, 10**7 * UNIT]),
        lies=st.sampled_from([False, False, True]),
        chosen=bits,
        spoilt=flaws,
    )
    def propose(
        self,
        pause: int,
        flaw: str,
        gains: list[int],
        reward: int,
        lies: bool,
        chosen: Chosen,
        spoilt: str,
    ) -> None:
        self.next_checkpoint(pause, flaw, gains, reward, lies, chosen, spoilt)

    def next_checkpoint(
        self,
        pause: int,
        flaw: str,
        gains: list[int],
        reward: int,
        lies: bool,
        chosen: Chosen,
        spoilt: str,
    ) -> None:
        EVM.wait(pause)
        both, hub = self.both, self.both.hub
        last = hub.last
        before = self.honest.get(last.hash, {})
        leaves = {key.address: before.get(key.address, 0) + more for key, more in zip(PEER_KEYS, gains, strict=False)}
        honest, promised = dict(leaves), max(0, sum(leaves.values()) + reward)
        if lies:
            leaves[PEER_KEYS[0].address] += 10**5 * UNIT
        tree = StandardMerkleTree((bytes.fromhex(key[2:]), value) for key, value in leaves.items())
        header: dict[str, Any] = {
            **{"runId": RUN, "forkNonce": hub.fork_nonce, "epoch": hub.epoch + 1, "parent": last.hash},
            **{"firstRound": last.last_round + 1, "lastRound": last.last_round + 10},
            **{"modelRoot": b"m" * 32, "dataRoot": b"d" * 32, "tallyRoot": tree.root},
            **{"cumulativeReward": promised, "peers": 4, "tokens": 5},
        }
        if flaw:
            spoil = {"lastRound": 0, "runId": b"x" * 32, "parent": b"x" * 32}
            header[flaw] = spoil.get(flaw, header[flaw] + 1 if isinstance(header[flaw], int) else b"")
        name = struct_hash("Checkpoint", list(header.values()))
        bitmap, words, signatures, odd = self.votes(both.digest(name), chosen, spoilt)
        slot = Slot(name, self.now, header["lastRound"], promised, leaves)
        funded = both.pool.funded(header["epoch"])
        if both.do(
            0,
            "CheckpointHub",
            "propose",
            (tuple(header.values()), bitmap, words),
            lambda: hub.propose(header, slot, funded, bitmap, signatures, odd),
        ):
            self.trees[hub.epoch] = (leaves, tree)
            self.honest[name] = honest

    @rule(count=st.sampled_from([3, 3, 3, 10, 40]))
    def epochs_pass(self, count: int) -> None:
        """So many in a row, that the hub's ring goes round in some walks."""
        for _ in range(count):
            self.next_checkpoint(60, "", [1, 0, 2, 0], 0, False, "all", "")

    @rule(back=st.sampled_from([-1, 0, 1, 2, -1, 0, -2, 12]), chosen=bits, spoilt=flaws)
    def rollback(self, back: int, chosen: Chosen, spoilt: str) -> None:
        hub = self.both.hub
        epoch = max(0, hub.epoch - back)
        digest = self.both.digest(struct_hash("Rollback", [RUN, hub.fork_nonce, epoch]))
        bitmap, words, signatures, odd = self.votes(digest, chosen, spoilt)
        self.both.do(
            0,
            "CheckpointHub",
            "rollback",
            (epoch, bitmap, words),
            lambda: hub.rollback(epoch, self.now, bitmap, signatures, odd),
        )

    @rule(
        to=st.lists(st.tuples(st.sampled_from(ATTESTOR_KEYS), st.sampled_from([*[1] * 8, 2, 5, 0])), max_size=6),
        nobody=st.sampled_from([False, False, False, True]),
        chosen=st.just("all") | st.just("all") | bits,
        spoilt=flaws,
    )
    def rotate(self, to: list[tuple[Key, int]], nobody: bool, chosen: Chosen, spoilt: str) -> None:
        pairs = [(key.address, weight) for key, weight in to] + ([(ZERO, 1)] if nobody else [])
        addresses, weights = [key for key, _ in pairs], [weight for _, weight in pairs]
        lists = (
            word(64) + word(96 + 32 * len(pairs)) + b"".join(map(word, [len(pairs), *addresses, len(pairs), *weights]))
        )
        digest = self.both.digest(struct_hash("Rotation", [RUN, self.both.hub.rotation_nonce, keccak(lists)]))
        bitmap, words, signatures, odd = self.votes(digest, chosen, spoilt)
        self.both.do(
            0,
            "CheckpointHub",
            "rotate",
            (addresses, weights, bitmap, words),
            lambda: self.both.hub.rotate(pairs, bitmap, signatures, odd),
        )
