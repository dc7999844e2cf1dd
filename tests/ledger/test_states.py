"""A state hashed chunk by chunk: the same root as its file, and nothing that is no state of the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest

from averaging.state_chunks import CHUNK_BYTES
from dht.errors import StorageError
from ledger.explorer.states import StateHash, model_root
from tests.ledger.fake_chain import RUN
from tests.ledger.world import SCHEMA, states

CHUNKS = [bytes(chunk) for chunk in states(3).chunks()]
HEADER = CHUNKS[0]


def hashed(chunks: list[bytes], count: int = len(CHUNKS)) -> bytes:
    state = StateHash(RUN, count)
    for chunk in chunks:
        state.take(chunk)
    assert (state.taken, state.size) == (len(chunks), sum(map(len, chunks)))
    return state.root


def test_chunks_and_file_have_the_same_root(tmp_path: Path):
    (tmp_path / "state.bin").write_bytes(b"".join(CHUNKS))
    assert hashed(CHUNKS) == model_root(tmp_path / "state.bin", RUN) == states(3).root()
    assert hashed([*CHUNKS[:-1], bytes(len(CHUNKS[-1]))]) != states(3).root()


def with_sections(change: Callable[[list[list[object]]], object]) -> bytes:
    header = msgpack.unpackb(HEADER)
    change(header["sections"])
    return bytes(msgpack.packb(header, use_bin_type=True))


WRONG: dict[str, tuple[list[bytes], int]] = {
    "a chunk that is too long": ([HEADER, CHUNKS[1], CHUNKS[2] + b"1234"], len(CHUNKS)),
    "a chunk that is too short": ([HEADER, CHUNKS[1][:-4]], len(CHUNKS)),
    "more chunks than the header says": ([HEADER], len(CHUNKS) + 1),
    "fewer chunks than the header says": ([HEADER], len(CHUNKS) - 1),
    "bytes after the header": ([HEADER + b"\x00"], len(CHUNKS)),
    "half a header": ([HEADER[:-1]], len(CHUNKS)),
    "a header without an end": ([b"\xc6\x7f\xff\xff\xff" + bytes(CHUNK_BYTES - 5), bytes(CHUNK_BYTES)], 2),
    "no header": ([b"\xc1"], len(CHUNKS)),
    "a section less": ([with_sections(lambda sections: sections.pop())], len(CHUNKS) - 1),
    "doubles": ([with_sections(lambda sections: sections[0].__setitem__(1, "<f8"))], len(CHUNKS)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_state_of_the_run_is_not_hashed_to_the_end(wrong: str):
    with pytest.raises(StorageError):
        hashed(*WRONG[wrong])
    assert len(SCHEMA.chunks) == len(CHUNKS)
