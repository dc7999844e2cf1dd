"""`contribution-explorer`: the ledger of a run on the command line.

Exit codes: those of `dht.errors`; 1 when `verify` or `report` finds that something is not true; 130 a Ctrl-C.
What is heavy is imported inside the commands: --help answers at once.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

from cyclopts import App, CycloptsError, Group
from cyclopts.config import Env

from dht import exits
from dht.errors import ConfigError
from ledger.devnet import app as devnet
from ledger.explorer.commands import deploy, files, live, money, network, people, records, report

_LOOK = Group("Look", sort_key=1)
_CHECK = Group("Check and take along", sort_key=2)
_DO = Group("Earn, stake, pay", sort_key=3)


def application() -> App:
    """The command line."""
    app = App(
        name="contribution-explorer",
        help="Who contributed what to a run, what it earned, and a check of every number that says so.",
        version=_version,
        config=[Env("MURMURATION_EXPLORER_", command=False)],
        result_action="return_value",
    )
    look: tuple[Callable[..., int], ...] = (
        network.runs,
        network.status,
        network.epochs,
        network.epoch,
        people.peers,
        people.peer,
        people.leaderboard,
        people.slashes,
        network.params,
        network.tx,
        network.fees,
        live.watch,
        live.serve,
    )
    check: tuple[Callable[..., int], ...] = (records.verify, records.proof, files.export, files.plot, network.index)
    do: tuple[Callable[..., int], ...] = (money.enrol, report.report, deploy.deploy)
    for commands, group in ((look, _LOOK), (check, _CHECK), (do, _DO)):
        for command in commands:
            app.command(command, group=group)
    app.command(records.round_, name="round", group=_LOOK)
    for family in (money.rewards, money.stake, money.usage, deploy.wallet, devnet):
        family.group = (_DO,)
        app.command(family)
    return app


def parse(argv: Sequence[str]) -> tuple[Callable[..., int | None], inspect.BoundArguments]:
    """The command that the arguments name, with its parameters. Raises ConfigError."""
    try:
        command, bound, _ = application().parse_args(argv, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise ConfigError(str(error).strip(), remedy="contribution-explorer --help lists all commands") from None
    return command, bound


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the console script."""
    given = list(sys.argv[1:] if argv is None else argv)

    def command() -> int | None:
        function, bound = parse(given)
        return function(*bound.args, **bound.kwargs)

    exits.run(command, as_json="--json" in given)


def _version() -> str:
    try:
        return version("murmuration")
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
