from __future__ import annotations

import argparse

import pytest

from myriad_lab.cli.arguments import Parser, positive_int, refuse_overrides, seed_int, split_overrides
from myriad_lab.cli.main import COMMANDS, main, overview, parser_of
from myriad_lab.errors import ConfigurationError


def test_overrides_are_told_from_flags() -> None:
    assert split_overrides(["agent.k=5", "env.goal=[1,-2]"], ["--seed"]) == ["agent.k=5", "env.goal=[1,-2]"]


def test_an_unknown_flag_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown flag --num_env\. Did you mean --num_envs"):
        split_overrides(["--num_env=3"], ["--num_envs", "--task"])


def test_flags_that_isaac_labs_commands_know_and_ours_do_not_need_say_so() -> None:
    with pytest.raises(ConfigurationError, match=r"--headless is a flag of Isaac Lab's commands, .*--viz"):
        split_overrides(["--headless"], ["--seed"])


def test_a_bare_word_is_no_override() -> None:
    with pytest.raises(ConfigurationError, match="'fast' is neither a flag nor an override"):
        split_overrides(["fast"], [])


def test_commands_without_configuration_refuse_overrides() -> None:
    refuse_overrides("doctor", [])
    with pytest.raises(ConfigurationError, match=r"doctor takes no overrides, 'agent\.k=5' was given"):
        refuse_overrides("doctor", ["agent.k=5"])


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "many"])
def test_counts_must_be_positive(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="at least 1"):
        positive_int(text)


@pytest.mark.parametrize("text", ["-1", str(2**31), "x"])
def test_seeds_must_fit(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="whole number in"):
        seed_int(text)
    assert seed_int("0") == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--checkpoint", ""],
        ["train", "--portfolio", ""],
        ["train", "--runs_root", ""],
        ["evaluate", "--checkpoint="],
        ["export", "--runs_root", " "],
        ["report", ""],
        ["report", "--checkpoint", ""],
        ["story", "--runs_root", ""],
        ["evaluate", "--out", ""],
        ["export", "--out", ""],
        ["play", "--out", ""],
        ["report", "--out", ""],
        ["study", "maps_pointmaze", "--out", ""],
    ],
)
def test_empty_values_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "an empty text was given; give a value, or leave the flag out" in capsys.readouterr().err


def test_errors_of_the_parser_are_raised() -> None:
    parser = Parser(prog="myriad x")
    parser.add_argument("--count", type=int)
    with pytest.raises(ConfigurationError, match=r"--count.*see `myriad x --help`"):
        parser.parse_args(["--count", "many"])


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    assert capsys.readouterr().out.count(overview()) == 2
    assert all(name in overview() for name in COMMANDS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command: str) -> None:
    text = parser_of(command).format_help()
    assert f"usage: myriad {command}" in text
    undocumented = [action.dest for action in parser_of(command)._actions if not action.help]
    assert not undocumented


def test_an_unknown_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "error: unknown command 'trian'. Did you mean train?\n"


def test_a_wrong_flag_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--num_envz", "3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: unknown flag --num_envz. Did you mean --num_envs")
