"""Arguments of console commands: what is called, what is refused, and with which exit code."""

from __future__ import annotations

import json

import pytest
from cyclopts import App

from dht import command_line
from dht.errors import ConfigError, StorageError

app = App(name="tool", result_action="return_value")


@app.default
def tool(*, number: int = 0, json: bool = False) -> int:
    """Exit with a number."""
    if number < 0:
        raise StorageError("below zero", remedy="count upwards")
    return number


def parse(argv):
    return command_line.parse(app, argv, "tool --help helps")


def test_arguments_become_a_call():
    function, bound = parse(["--number", "3"])
    assert function(*bound.args, **bound.kwargs) == 3
    for wrong in (["--nummer", "3"], ["--number", "x"], ["more"]):
        with pytest.raises(ConfigError) as caught:
            parse(wrong)
        assert caught.value.remedy == "tool --help helps"


@pytest.mark.parametrize(
    ("argv", "code", "said"), [(["--number=3"], 3, ""), (["--what"], 2, "error: "), (["--number=-1"], 74, "below zero")]
)
def test_the_exit_code_is_the_commands_or_the_errors(argv, code, said, capsys):
    with pytest.raises(SystemExit) as ended:
        command_line.main(parse, argv)
    assert ended.value.code == code and said in capsys.readouterr().err


def test_errors_are_json_where_that_is_asked_for(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tool", "--json", "--number=-1"])
    with pytest.raises(SystemExit):
        command_line.main(parse, None)
    assert json.loads(capsys.readouterr().err)["error"] == "below zero"


def test_the_version_is_the_packages():
    assert command_line.version().count(".") >= 1
