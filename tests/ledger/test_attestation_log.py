import pytest

from dht.errors import StorageError
from ledger.attestation_log import SqliteAttestationLog
from ledger.evidence import SignedCheckpoint
from tests.ledger.headers import DOMAIN, OTHER_DOMAIN, RUN, header

ALICE, BOB = b"a" * 20, b"b" * 20


@pytest.fixture
def logs(tmp_path):
    opened = []

    def restart():
        if opened:
            opened[-1].close()
        opened.append(SqliteAttestationLog(tmp_path / "attestations.sqlite"))
        return opened[-1]

    yield restart
    opened[-1].close()


def test_the_first_of_a_signer_and_place_is_kept(logs):
    first, second = (SignedCheckpoint(header(root=root * 32), root * 64) for root in (b"1", b"2"))
    assert logs().keep(DOMAIN, ALICE, first) == first
    assert logs().keep(DOMAIN, ALICE, second) == first
    assert logs().keep(DOMAIN, BOB, second) == second
    assert logs().keep(OTHER_DOMAIN, ALICE, second) == second
    assert logs().at(DOMAIN, RUN, 0, 1) == [(ALICE, first), (BOB, second)]
    assert logs().at(DOMAIN, RUN, 1, 1) == logs().at(DOMAIN, RUN, 0, 2) == []


def test_old_epochs_are_forgotten(logs):
    for epoch in (1, 2, 300):
        logs().keep(DOMAIN, ALICE, SignedCheckpoint(header(epoch), b"s" * 64))
    logs().forget(DOMAIN, 2)
    assert [len(logs().at(DOMAIN, RUN, 0, epoch)) for epoch in (1, 2, 300)] == [0, 1, 1]
    logs().forget(DOMAIN, 300)
    assert [len(logs().at(DOMAIN, RUN, 0, epoch)) for epoch in (1, 2, 300)] == [0, 0, 1]


def test_a_log_that_cannot_be_used_says_so(tmp_path):
    with pytest.raises(StorageError):
        SqliteAttestationLog(tmp_path / "missing" / "log.sqlite")
    log = SqliteAttestationLog(tmp_path / "log.sqlite")
    log.close()
    with pytest.raises(StorageError) as failed:
        log.at(DOMAIN, RUN, 0, 1)
    assert failed.value.remedy
