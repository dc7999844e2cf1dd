"""What the console commands have in common: arguments become one call, and what fails becomes one line."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import NoReturn, TypeAlias

from cyclopts import App, CycloptsError

from dht import exits
from dht.errors import ConfigError

Call: TypeAlias = tuple[Callable[..., int | None], inspect.BoundArguments]


def parse(app: App, argv: Sequence[str], remedy: str) -> Call:
    """The command that the arguments name, with its parameters. Raises ConfigError."""
    try:
        command, bound, _ = app.parse_args(argv, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise ConfigError(str(error).strip(), remedy=remedy) from None
    return command, bound


def main(parse: Callable[[Sequence[str]], Call], argv: Sequence[str] | None) -> NoReturn:
    """Parse (of this process's arguments if `argv` is None), call, and exit with the code that comes of it."""
    given = list(sys.argv[1:] if argv is None else argv)

    def command() -> int | None:
        function, bound = parse(given)
        return function(*bound.args, **bound.kwargs)

    exits.run(command, as_json="--json" in given)


def version() -> str:
    """Of the installed package."""
    try:
        return metadata.version("murmuration")
    except metadata.PackageNotFoundError:
        return "not installed"
