"""The contracts in this process, on pyrevm: what a test changes, it takes back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from pyrevm import EVM, AccountInfo, BlockEnv, CfgEnv, Env

from benchmarks.contracts import Deployment, Key, Receipt, RevertedError, reverted

CHAIN_ID = 31_337
START = 1_800_000_000
_OUTPUT = re.compile(r"output: (0x[0-9a-f]*)")


class Pyrevm(Deployment):
    """The contracts on an EVM that stands still until `wait`."""

    def __init__(self) -> None:
        self._evm = EVM(Env(cfg=CfgEnv(chain_id=CHAIN_ID)), spec_id="PRAGUE")
        self.time = START
        self.wait(0)
        super().__init__([Key(f"account {i}").address for i in range(6)], CHAIN_ID)
        for account in self.accounts:
            self._evm.insert_account_info(account, AccountInfo())

    def wait(self, seconds: int) -> None:
        """Let time pass."""
        self.time += seconds
        self._evm.set_block_env(BlockEnv(number=1, timestamp=self.time))

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Take back what happens inside."""
        start, time = self._evm.snapshot(), self.time
        try:
            yield
        finally:
            self._evm.revert(start)
            self.wait(time - self.time)

    def transact(self, sender: str, to: str | None, data: bytes) -> Receipt:
        try:
            if to is None:
                created = self._evm.deploy(sender, data)
            else:
                self._evm.message_call(sender, to, data)
                created = ""
        except RuntimeError as error:
            raise self._reason(error) from None
        result = self._evm.result
        logs = [(log.address, *log.data) for log in result.logs]
        return Receipt(result.gas_used, self.events(logs), created)

    def view(self, to: str, data: bytes) -> bytes:
        try:
            return self._evm.message_call(self.accounts[0], to, data, is_static=True)
        except RuntimeError as error:
            raise self._reason(error) from None

    @staticmethod
    def _reason(error: RuntimeError) -> RevertedError:
        output = _OUTPUT.search(str(error))
        return reverted(bytes.fromhex(output[1][2:])) if output else RevertedError(str(error), ())
