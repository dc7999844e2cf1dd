"""A chain with one hub on it, by the rules of docs/ledger.md, in memory: blocks, a mempool, reorganisations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ledger.chain_view import Head, HubIntent, Propose, RollBack
from ledger.checkpoint import NOTHING, Checkpoint
from ledger.eip712 import Domain
from ledger.electorate import Electorate
from ledger.rewards import Constants
from ledger.signatures import recover
from ledger.usage_fees import count_fees

DOMAIN = Domain(31337, bytes.fromhex("5fbdb2315678afecb367f032d93f642f64180aa3"))


class RevertedError(Exception):
    """The transaction changes nothing."""


@dataclass(frozen=True)
class Hub:
    """The hub's state in one block. `checkpoints[e - 1]` is (header, block) of epoch e; `payments` (block, amount)."""

    run: bytes
    electorate: Electorate
    constants: Constants
    window: float = 60.0
    interval: float = 4.0
    fork_nonce: int = 0
    rolled_back: int = 0
    checkpoints: tuple[tuple[Checkpoint, int, float], ...] = ()
    payments: tuple[tuple[int, int], ...] = ()

    def propose(self, intent: Propose, block: int, now: float) -> Hub:
        """`CheckpointHub.propose`. Raises RevertedError."""
        header, last = intent.header, self.checkpoints[-1] if self.checkpoints else None
        cumulative = last[0].cumulative_reward if last else 0
        rules = {
            "run": header.run == self.run,
            "fork nonce": header.fork_nonce == self.fork_nonce,
            "epoch": header.epoch == len(self.checkpoints) + 1,
            "parent": header.parent == (last[0].hash() if last else NOTHING),
            "rounds": header.first_round == (last[0].last_round + 1 if last else 1) <= header.last_round,
            "falling": header.cumulative_reward >= cumulative,
            "funded": header.cumulative_reward <= self.funded(header.epoch),
            "too soon": last is None or now >= last[2] + self.interval,
            "quorum": self._quorum(header.digest(DOMAIN), intent),
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise RevertedError(", ".join(broken))
        return replace(self, checkpoints=(*self.checkpoints, (header, block, now)))

    def _quorum(self, digest: bytes, intent: HubIntent) -> bool:
        signatures = intent.signatures()
        signed = all(recover(digest, each) == self.electorate.addresses[bit] for bit, each in signatures.items())
        return signed and self.electorate.enough(signatures)

    def funded(self, epoch: int) -> int:
        """`RewardPool.funded`."""
        emitted = min(self.constants.emission * epoch, self.constants.emission_cap)
        return emitted + sum(amount for _, amount in self.payments)

    def roll_back(self, intent: RollBack, now: float) -> Hub:
        """`CheckpointHub.rollback`. Raises RevertedError."""
        signed = replace(intent.rollback, run=self.run, fork_nonce=self.fork_nonce)
        if not self._quorum(signed.digest(DOMAIN), intent):
            raise RevertedError("quorum")
        return self.rollback(intent.rollback.epoch, now)

    def rollback(self, epoch: int, now: float) -> Hub:
        """`CheckpointHub.rollback`, with the quorum that it takes. Raises RevertedError when the epoch is active."""
        if not self.active(now) < epoch <= len(self.checkpoints) + 1:
            raise RevertedError("active, or not there")
        kept = self.checkpoints[: epoch - 1]
        return replace(self, checkpoints=kept, fork_nonce=self.fork_nonce + 1, rolled_back=epoch)

    def active(self, now: float) -> int:
        """The last active epoch."""
        return sum(now >= proposed + self.window for _, _, proposed in self.checkpoints)

    def fees(self) -> tuple[int, ...]:
        """What counts in each epoch up to the next one."""
        places = [(block, 0) for _, block, _ in self.checkpoints]
        return count_fees(places, [((block, 0), amount) for block, amount in self.payments])

    def head(self, now: float) -> Head:
        """What a `ChainView` says of it."""
        headers, active = [header for header, _, _ in self.checkpoints], self.active(now)
        last = headers[-1] if headers else None
        recent = tuple(headers[max(0, active - 1) : -1])
        return Head(last, self.fork_nonce, active, self.electorate, self.fees(), recent, self.rolled_back)


@dataclass
class FakeChain:
    """Blocks with one hub, and transactions that wait for the next block."""

    hub: Hub
    blocks: list[Hub] = field(default_factory=list)
    mempool: list[HubIntent] = field(default_factory=list)
    reverted: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.blocks.append(self.hub)

    @property
    def tip(self) -> Hub:
        """The hub in the newest block."""
        return self.blocks[-1]

    def send(self, intent: HubIntent) -> None:
        """Put a transaction into the mempool, unless it is there."""
        if intent not in self.mempool:
            self.mempool.append(intent)

    def mine(self, now: float) -> None:
        """One more block with all that waits."""
        state = self.tip
        for intent in self.mempool:
            try:
                if isinstance(intent, RollBack):
                    state = state.roll_back(intent, now)
                else:
                    state = state.propose(intent, len(self.blocks), now)
            except RevertedError as error:
                self.reverted.append(str(error))
        self.mempool.clear()
        self.blocks.append(state)

    def pay(self, amount: int) -> None:
        """A block with one payment of usage fees."""
        payments = (*self.tip.payments, (len(self.blocks), amount))
        self.blocks.append(replace(self.tip, payments=payments))

    def roll_back(self, epoch: int, now: float) -> None:
        """A block with a rollback. Raises RevertedError."""
        self.blocks.append(self.tip.rollback(epoch, now))

    def reorganise(self, depth: int) -> tuple[Checkpoint, ...]:
        """The last blocks never were, nor their transactions; the checkpoints that went with them."""
        before = self.tip.checkpoints
        del self.blocks[-depth:]
        self.mempool.clear()
        return tuple(header for header, _, _ in before[len(self.tip.checkpoints) :])


def landed(chain: FakeChain) -> Iterable[int]:
    """Epochs of the checkpoints on the hub, in order."""
    return [header.epoch for header, _, _ in chain.tip.checkpoints]
