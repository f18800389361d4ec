"""``myriad <command>``: find the command, and turn the errors a user can mend into one line."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence

from myriad_lab.cli.arguments import Parser, split_overrides
from myriad_lab.errors import CheckpointError, ConfigurationError, nearest

COMMANDS = {
    "story": "pre-train, finetune, evaluate, report, export and verify, end to end (make run)",
    "train": "train a population, from nothing, from a portfolio, or go on with a run",
    "play": "show a checkpoint in the simulator, as a video or in the viewer",
    "evaluate": "measure success, return, coverage and diversity of a checkpoint",
    "report": "turn a run folder into one self-contained HTML page",
    "export": "write ONNX, TorchScript and the contract of a policy, and verify them",
    "study": "run a grid of trainings at an equal budget, and tabulate the results",
    "benchmark": "measure the hot paths, each beside its floor and its peer, on this machine",
    "list_tasks": "list the registered tasks",
    "doctor": "say what works on this machine and what is missing",
}
"""Command -> one line of help; each is a module of ``myriad_lab.cli`` with ``add_arguments`` and ``run``."""

USER_ERROR = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 2 for an error of the user, 130 for Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        return 0
    if argv[0] == "--version":
        import myriad_lab

        print(myriad_lab.__version__)
        return 0
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        return _dispatch(argv)
    except (ConfigurationError, CheckpointError, FloatingPointError) as error:  # the last: NaN in the physics
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe, e.g. `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def run_script(command: str) -> None:
    """Run ``command`` with the arguments of the process and exit; the body of ``scripts/<command>.py``."""
    sys.exit(main([command, *sys.argv[1:]]))


def overview() -> str:
    """Return the help of ``myriad`` itself."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(["usage: myriad <command> [flags] [env.key=value ...] [agent.key=value ...]", "", *lines])


def parser_of(command: str) -> Parser:
    """Return the parser of a command.

    Raises:
        ConfigurationError: If there is no such command.
    """
    if command not in COMMANDS:
        raise ConfigurationError(f"unknown command {command!r}. {nearest(command, COMMANDS)}")
    parser = Parser(prog=f"myriad {command}", description=COMMANDS[command], allow_abbrev=False)
    importlib.import_module(f"myriad_lab.cli.{command}").add_arguments(parser)
    return parser


def _dispatch(argv: list[str]) -> int:
    parser = parser_of(argv[0])
    args, rest = parser.parse_known_args(argv[1:])
    overrides = split_overrides(rest, parser.flags())
    return importlib.import_module(f"myriad_lab.cli.{argv[0]}").run(args, overrides)


if __name__ == "__main__":
    sys.exit(main())
