"""What must never be broken in secure aggregation: one scenario per rule, and the proof that it watches its rule.

Each scenario holds on the code as it is. With its rule taken out (`tests.averaging.mutations`) exactly this scenario
finds the rule broken, and no other does.
"""

from __future__ import annotations

import itertools
import random
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from averaging import masking, sealing
from averaging.bulk import BulkKind, Chunk
from averaging.convening import Convening
from averaging.dealing import Dealing
from averaging.guard import MemoryGuard, SqliteGuard
from averaging.messages import (
    AuditShares,
    Manifest,
    Ready,
    Shares,
    SumHashes,
    Survivors,
    Unmask,
    Vote,
)
from averaging.roster import convener, make_roster, make_seatings
from averaging.survivors import bitmap
from dht.envelope import seal
from dht.errors import ProtocolError, Refusal
from dht.wire import digest, encode
from tests.averaging import mutations
from tests.averaging.cohort_net import HEAD, RUN, CohortNet, identity, make_secrets, sign_joins, small_params
from tests.averaging.lies import wrong_sum_net


class RuleBrokenError(AssertionError):
    """The rule that a scenario watches does not hold."""


def rule(holds: object, text: str) -> None:
    if not holds:
        raise RuleBrokenError(text)


# --- lives of one member --------------------------------------------------------------------------------------------


def another_life(net: CohortNet, i: int) -> Any:
    """Member i once more, on its guard's file, with all that the others sent it until the votes."""
    life = net.make_cohort(i)
    life.start()
    for j, to, item in net.sent:
        own = j == i and isinstance(item, Manifest)
        if own or (to == i and isinstance(item, Shares | Ready | Manifest)):
            life.receive(net.roster.peers[j], item, encode(seal(net.nodes[j].identity, RUN, 1, item)))
    return life


def signed(net: CohortNet, i: int, message: object) -> bytes:
    return encode(seal(net.nodes[i].identity, RUN, 1, message))


def give(net: CohortNet, life: Any, sender: int, message: object) -> list[Any]:
    """The messages that a life answers with."""
    actions = life.receive(net.roster.peers[sender], message, signed(net, sender, message))
    return [action.message.message() for action in actions if hasattr(action, "message")]


def other_certificate(net: CohortNet, life: Any, without: int, voters: list[int]) -> list[Any]:
    """Colluders certify a set that leaves one survivor out; what the life answers."""
    chosen = set(range(len(net.nodes))) - {without}
    vote = Vote(net.roster.sid, bitmap(chosen), bitmap(set(voters)), life.r3._manifests(chosen))
    return [answer for voter in voters for answer in give(net, life, voter, vote)]


@contextmanager
def on_disk(n: int, i: int) -> Iterator[tuple[CohortNet, Callable[[], SqliteGuard]]]:
    """A cohort whose member i has its guard in a file, and how to open that file once more."""
    with tempfile.TemporaryDirectory() as folder:
        net = CohortNet(n)
        net.nodes[i].guard = SqliteGuard(Path(folder) / "guard.sqlite")
        guards = [net.nodes[i].guard]

        def reopen() -> SqliteGuard:
            guards.append(SqliteGuard(Path(folder) / "guard.sqlite"))
            net.nodes[i].guard = guards[-1]
            return guards[-1]

        yield net, reopen
        for guard in guards:
            guard.close()


# --- scenarios ------------------------------------------------------------------------------------------------------


def one_survivor_set_for_all_chunks() -> None:
    """One packet from member 2 to reducer 5 is lost: everybody opens the same set, or 2 would be stripped bare."""
    net = CohortNet(8)
    lost = []

    def drop(i: int, j: int, item: Any) -> Any:
        if isinstance(item, Chunk) and (i, j) == (2, 5) and not lost:
            lost.append(item)
            return None
        return item

    net.tamper = drop
    net.run()
    assert lost
    opened = {message.survivors for message in net.messages(Unmask)}
    rule(len(opened) == 1, "members opened different survivor sets")
    net.check_sums()


def released_shares_stick() -> None:
    """After a restart, and in a second process on the same file, the other seed of a member is not released."""
    for restart in (True, False):
        with on_disk(5, 3) as (net, reopen):
            net.run()
            first = net.messages(Unmask, 3)
            assert first
            if restart:
                net.nodes[3].guard.close()
            reopen()
            answers = other_certificate(net, another_life(net, 3), without=0, voters=[0, 1, 2, 4])
            released = [answer for answer in answers if isinstance(answer, Unmask)]
            rule(all(m.survivors == first[0].survivors for m in released), "both seeds of a member were released")


def one_vote_per_sid() -> None:
    """Colluding reducers show other receipts to a member that restarted: it has voted already."""
    with on_disk(5, 3) as (net, reopen):
        net.run()
        (first,) = set(net.messages(Vote, 3))
        net.nodes[3].guard.close()
        reopen()
        life = another_life(net, 3)
        reducers = [0, 1, 2, 4]
        receipts = [life.r3.receipt({1, 2, 3, 4}) for _ in reducers]
        frames = tuple(signed(net, i, receipt) for i, receipt in zip(reducers, receipts, strict=True))
        life._done.add("receipt")
        answers = give(net, life, 0, Survivors(net.roster.sid, 0, bitmap({1, 2, 3, 4}), bitmap(set(reducers)), frames))
        votes = {answer for answer in answers if isinstance(answer, Vote)}
        rule(votes <= {first}, "a second vote in one sid")


def no_vote_after_an_opening() -> None:
    """The round's next attempt, after this one was opened: uploads may run, but nobody votes."""
    first = CohortNet(5).run()
    first.check_sums()
    second = CohortNet(5, attempt=1, guards=first.guards).run()
    assert second.roster.sid != first.roster.sid
    assert second.messages(Survivors)
    rule(second.messages(Vote) == [], "a member voted in a round that it had opened")
    assert all(node.cohort.failed for node in second.nodes)


def no_second_opening_of_a_round() -> None:
    """The others opened nothing, so they vote and certify; who opened the first attempt releases nothing here."""
    first = CohortNet(5).run()
    guards = {peer: MemoryGuard() for peer in first.guards}
    opener = first.roster.peers[2]
    guards[opener] = first.guards[opener]
    second = CohortNet(5, attempt=1, guards=guards)
    me = second.roster.peers.index(opener)
    second.tamper = lambda i, j, item: None if j == me and isinstance(item, Survivors) else item
    second.run()
    assert len(second.messages(Vote)) >= 4
    rule(second.messages(Unmask, me) == [], "two sids of one round were opened")


def seeds_are_checked_against_what_their_dealer_published() -> None:
    """A dealer's shares fit its hashes and open another seed than the one it committed to."""
    net = CohortNet(5)
    liar = 2
    cohort = net.nodes[liar].cohort = net.make_cohort(liar)
    other = replace(net.nodes[liar].secrets, b=bytes(31))
    cohort._dealing = cohort._audit._dealing = Dealing(net.roster, liar, other, 4, random.Random(1).randbytes)
    net.run()
    honest = [node.cohort for i, node in enumerate(net.nodes) if i != liar]
    named = [cohort.failed is not None and f"member {liar} dealt" in cohort.failed.reason for cohort in honest]
    rule(all(named), "a wrong seed was used")


def shares_are_checked_against_their_dealers_hashes() -> None:
    """A holder returns wrong shares: it is named, and the sum is made without them."""
    net = CohortNet(8)
    liar = 4

    def lie(i: int, j: int, item: Any) -> Any:
        wrong = isinstance(item, Unmask) and i == liar
        return replace(item, shares=(bytes(32), *item.shares[1:])) if wrong else item

    net.tamper = lie
    net.run()
    accused = {(note.peer, i) for i, note in net.notes if "BAD_SHARE" in note.text}
    everybody = {(net.roster.peers[liar], i) for i in range(8) if i != liar}
    rule(accused == everybody, "a wrong share was not noticed")
    net.check_sums()


def a_dead_reducers_chunks_are_resent_byte_for_byte() -> None:
    net = CohortNet(8)
    dead = 3
    net.plan = {dead: ("Reduce", 1)}
    net.run()
    assert net.fired
    versions: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    for i, _, item in net.sent:
        if isinstance(item, Chunk) and item.kind is BulkKind.MASKED:
            versions[i, item.index].append(bytes(item.data))
    chunk = net.nodes[0].cohort.duties.of(dead)[0]
    resent = [i for i in net.living if len(versions[i, chunk]) > 1]
    assert len(resent) >= 6
    rule(all(len(set(data)) == 1 for data in versions.values()), "a chunk was resent differently")
    assert net.check_sums() == ()


def no_cohort_below_the_minimum() -> None:
    """A convener signs a roster of four where five are the least."""
    params = small_params(5, minimum=5)
    committee = tuple(sorted(identity(i).peer_id for i in range(5)))
    owner = next(i for i in range(5) if identity(i).peer_id == convener(HEAD, committee, 0))
    me = next(i for i in range(5) if i != owner)
    source = random.Random(7).randbytes
    machine = Convening(params, identity(me), 1, HEAD, committee, MemoryGuard(), source)
    machine.begin(0, 100)
    absent = next(i for i in range(5) if i not in (owner, me))
    joins = sign_joins({i: s for i, s in enumerate(make_secrets(5, 1)) if i not in (me, absent)})
    by_peer = {identity(i).peer_id: join for i, join in joins.items()} | {identity(me).peer_id: machine._join}
    roster = make_roster(1, 0, HEAD, by_peer)
    refused = None
    try:
        ((_, seating),) = make_seatings(params, seal(identity(owner), RUN, 1, roster), by_peer)
        machine.receive_roster(seating)
    except ProtocolError as error:
        refused = error.refusal
    rule(machine.roster is None and refused is Refusal.OUT_OF_BOUNDS, "a cohort below the minimum")


def no_opening_below_the_threshold() -> None:
    """Two of eight die in the upload, where one is tolerated: nothing is opened, nothing is sent in the clear."""
    net = CohortNet(8)
    net.plan = {1: ("MASKED chunk", 3), 6: ("MASKED chunk", 5)}
    net.run()
    assert len(net.fired) == 2
    rule(net.messages(Unmask) == [], "shares were released below the threshold")
    rule(net.messages(SumHashes) == [], "a sum below the threshold")
    assert all(net.nodes[i].cohort.failed and not net.nodes[i].cohort.failed.opened for i in net.living)


def chi_square(data: bytes) -> float:
    """Pearson's statistic of the bytes' frequencies: 255 +- 23 for uniform ones."""
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    expected = len(data) / 256
    return float(((counts - expected) ** 2 / expected).sum())


def nothing_leaves_in_the_clear() -> None:
    """What goes out before the sum is never the update, and looks uniform."""
    for bits in (8, 16, 32):
        net = CohortNet(4, bits).run()
        uploads = {(i, c.index): bytes(c.data) for i, _, c in net.sent if isinstance(c, Chunk) and c.kind == 0xF0}
        assert len(uploads) >= 4 * 4
        for (i, chunk), data in uploads.items():
            clear = net.nodes[i].encoded[chunk].astype(net.params.layout.dtype(chunk)).tobytes()
            rule(data != clear, "an update was sent in the clear")
        everything = b"".join(uploads.values())
        rule(chi_square(everything) < 255 + 6 * 23, "masked updates are not uniform")


class CipherLog:
    """Stands in for `Cipher`: notes which blocks of which key's keystream are drawn, and for whose upload."""

    def __init__(self) -> None:
        self.owner: tuple[bytes, int] | None = None
        self.used: list[tuple[tuple[bytes, int], bytes, int, int]] = []

    def cipher(self, algorithm: Any, mode: Any) -> Any:
        log, real = self, masking.Cipher.real(algorithm, mode).encryptor()
        start = int.from_bytes(mode.nonce, "big")

        class Spy:
            drawn = 0

            def encryptor(self) -> Spy:
                return self

            def update_into(self, data: Any, out: Any) -> int:
                if log.owner is not None:
                    log.used.append((log.owner, algorithm.key, start + self.drawn // 16, len(data) // 16 + 1))
                self.drawn += len(data)
                return int(real.update_into(data, out))

        return Spy()


@contextmanager
def logged_ciphers() -> Iterator[tuple[CipherLog, list[tuple[bytes, bytes]]]]:
    """Logs the masks' keystreams of uploads, and (key, nonce) of every sealed share."""
    log, sealed, apply = CipherLog(), [], masking.Masker.apply
    real_cipher, real_aead = masking.Cipher, sealing.ChaCha20Poly1305

    def applied(self: masking.Masker, chunk: int, ring: Any) -> None:
        log.owner = (self.sid, self.me)
        apply(self, chunk, ring)
        log.owner = None

    class Aead:
        def __init__(self, key: bytes) -> None:
            self._key, self._real = key, real_aead(key)

        def encrypt(self, nonce: bytes, data: bytes, context: bytes) -> bytes:
            sealed.append((self._key, nonce))
            return self._real.encrypt(nonce, data, context)

        def decrypt(self, nonce: bytes, data: bytes, context: bytes) -> bytes:
            return self._real.decrypt(nonce, data, context)

    def cipher(algorithm: Any, mode: Any) -> Any:
        return log.cipher(algorithm, mode)

    cipher.real = real_cipher  # type: ignore[attr-defined]
    with (
        patch.object(masking, "Cipher", cipher),
        patch.object(masking.Masker, "apply", applied),
        patch.object(sealing, "ChaCha20Poly1305", Aead),
    ):
        yield log, sealed


def no_keystream_is_used_twice() -> None:
    """Over three attempts: within one upload no block of a key's stream twice; a key belongs to two members of one
    sid (whose masks cancel), or to one (its self mask); shares are sealed under other keys each way.
    """
    with logged_ciphers() as (log, sealed):
        for attempt in range(3):
            CohortNet(5, attempt=attempt, chunks=12, seed=0).run()
    assert len({owner for owner, *_ in log.used}) == 15
    owners: dict[bytes, set[tuple[bytes, int]]] = defaultdict(set)
    blocks: dict[tuple[tuple[bytes, int], bytes], list[tuple[int, int]]] = defaultdict(list)
    for owner, key, start, count in log.used:
        owners[key].add(owner)
        blocks[owner, key].append((start, start + count))
    for spans in blocks.values():
        spans.sort()
        apart = all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
        rule(apart, "two chunks under one stretch of keystream")
    for members in owners.values():
        rule(len(members) <= 2 and len({sid for sid, _ in members}) == 1, "a key outlives its attempt or pair")
    assert len(sealed) == 3 * 5 * 4
    rule(len({key for key, _ in sealed}) == len(sealed), "shares sealed twice under one key")


def the_audit_seed_opens_after_all_sums_are_signed() -> None:
    """A liar signs sums of all chunks at once; reducer 5 is slow. Nobody opens its audit shares before 5 has signed."""
    # No sum is audited: whoever is asked to show inputs of a sum that it had no right to sign has none to show.
    net = CohortNet(8, audit_share=0.0)
    slow, liar = 5, 6
    every = tuple(range(net.params.layout.total_chunks))

    def lie(i: int, j: int, item: Any) -> Any:
        if i == liar and isinstance(item, SumHashes):
            own = dict(zip(item.chunks, item.hashes, strict=True))
            return SumHashes(item.sid, every, tuple(own.get(c, bytes(32)) for c in every))
        return item

    net.tamper = lie
    net.delay = lambda i, j, item: 1.5 if i == slow and isinstance(item, SumHashes) else net.random.uniform(0.001, 0.3)
    net.run()
    log = list(zip(net.sent, net.times, strict=True))
    arrived = {j: at for (i, j, item), (_, at) in log if i == slow and isinstance(item, SumHashes)}
    opened = [(i, at) for (i, _, item), (at, _) in log if isinstance(item, AuditShares) and i not in (slow, liar)]
    assert opened and arrived
    rule(all(at >= arrived[i] for i, at in opened), "audit shares left before all sums were signed")
    net.check_sums()


def sums_count_only_from_who_owes_them() -> None:
    """A liar signs and sends a sum of its neighbour's chunk before the neighbour does."""
    net = CohortNet(8)
    liar, victim = 6, 3
    sid = net.roster.sid
    junk = bytes(net.params.layout.chunk_bytes(victim))
    false = SumHashes(sid, (victim,), (digest("no such sum"),))
    lies = []

    def lie(i: int, j: int, item: Any) -> Any:
        if i == liar and isinstance(item, Unmask):
            lies.append(j)
            net.inject(i, j, replace(false, hashes=(net.nodes[0].cohort.sums.hash(junk),)))
            net.inject(i, j, Chunk(BulkKind.SUM, sid, liar, victim, junk))
        return item

    net.tamper = lie
    net.delay = lambda i, j, item: (
        0.9 if i == victim and isinstance(item, SumHashes) else net.random.uniform(0.001, 0.3)
    )
    net.run()
    assert lies
    honest = [node.cohort for i, node in enumerate(net.nodes) if i != liar]
    rule(all(cohort.sums.get(victim)[0] == victim for cohort in honest), "a sum from who does not owe it")
    net.check_sums([i for i in range(8) if i != liar])


def what_is_audited_counts_only_when_it_is_right() -> None:
    """Under full audit a reducer signs one wrong sum: nobody honest goes by it."""
    net = wrong_sum_net(5, liar=2)
    honest = [node.cohort for i, node in enumerate(net.nodes) if i != 2]
    rule(not any(cohort.audited for cohort in honest), "a member goes by sums of which one was found wrong")


RULES: dict[str, tuple[Callable[[], None], tuple[Callable[[], Any], ...]]] = {
    scenario.__name__: (scenario, broken)
    for scenario, *broken in (
        (one_survivor_set_for_all_chunks, mutations.survivors_per_reducer),
        (released_shares_stick, mutations.forgotten_releases),
        (one_vote_per_sid, mutations.forgotten_votes),
        (no_vote_after_an_opening, mutations.votes_after_opening),
        (no_second_opening_of_a_round, mutations.second_opening),
        (seeds_are_checked_against_what_their_dealer_published, mutations.unchecked_seeds),
        (shares_are_checked_against_their_dealers_hashes, mutations.unchecked_shares),
        (a_dead_reducers_chunks_are_resent_byte_for_byte, mutations.fresh_resend),
        (no_cohort_below_the_minimum, mutations.no_minimum),
        (no_opening_below_the_threshold, mutations.no_threshold),
        (nothing_leaves_in_the_clear, mutations.no_masks),
        (no_keystream_is_used_twice, mutations.one_counter, mutations.old_keys),
        (the_audit_seed_opens_after_all_sums_are_signed, mutations.early_audit, mutations.anybodys_sums),
        (sums_count_only_from_who_owes_them, mutations.anybodys_sums),
        (what_is_audited_counts_only_when_it_is_right, mutations.no_audits),
    )
}
BROKEN = {
    mutation: {name for name, (_, taken) in RULES.items() if mutation in taken}
    for _, broken in RULES.values()
    for mutation in broken
}


@pytest.mark.parametrize("name", RULES)
def test_the_rule_holds(name):
    RULES[name][0]()


@pytest.mark.parametrize("mutation", BROKEN, ids=lambda mutation: mutation.__name__)
def test_without_the_rule_its_scenario_and_no_other_fails(mutation):
    failed = set()
    for name, (scenario, _) in RULES.items():
        with mutation():
            try:
                scenario()
            except RuleBrokenError:
                failed.add(name)
            except AssertionError:
                pass  # a sum that is wrong, a death that did not happen: not what this scenario watches
    assert failed == BROKEN[mutation]
