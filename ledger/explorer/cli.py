"""`contribution-explorer`: the ledger of a run on the command line.

Exit codes: those of `dht.errors`; 1 when `verify` or `report` finds that something is not true; 130 a Ctrl-C.
What is heavy is imported inside the commands: --help answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

from cyclopts import App, Group
from cyclopts.config import Env

from dht import command_line
from ledger.devnet import app as devnet
from ledger.explorer.commands import deploy, files, live, money, network, people, records, registry, report, verdicts

_LOOK = Group("Look", sort_key=1)
_CHECK = Group("Check and take along", sort_key=2)
_DO = Group("Earn, stake, pay", sort_key=3)


def application() -> App:
    """The command line."""
    app = App(
        name="contribution-explorer",
        help="Who contributed what to a run, what it earned, and a check of every number that says so.",
        version=command_line.version,
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
    do: tuple[Callable[..., int], ...] = (
        registry.enrol,
        registry.rotate_key,
        registry.set_metadata,
        report.report,
        deploy.deploy,
    )
    for commands, group in ((look, _LOOK), (check, _CHECK), (do, _DO)):
        for command in commands:
            app.command(command, group=group)
    app.command(records.round_, name="round", group=_LOOK)
    for family in (money.rewards, money.stake, money.usage, verdicts.verdict, deploy.wallet, devnet):
        family.group = (_DO,)
        app.command(family)
    return app


def parse(argv: Sequence[str]) -> command_line.Call:
    """The command that the arguments name, with its parameters. Raises ConfigError."""
    return command_line.parse(application(), argv, "contribution-explorer --help lists all commands")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the console script."""
    command_line.main(parse, argv)


if __name__ == "__main__":
    main()
