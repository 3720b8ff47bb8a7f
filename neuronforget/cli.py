"""The command line: the library's own functions, one command each.

Bad input ends in one line on stderr and exit status 2, with nothing written; Ctrl-C in status 130.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import tyro

from neuronforget.commands.drawing import report
from neuronforget.commands.requests import ledger
from neuronforget.commands.steps import attribute, audit, erase, evaluate
from neuronforget.commands.suites import SUITES
from neuronforget.commands.whole import compare, demo, testbed
from neuronforget.errors import InputError
from neuronforget.runs.ranks import in_launch

COMMANDS = (demo, testbed, attribute, erase, ledger, evaluate, audit, compare, report)
#: The commands whose work several processes divide; the first of them writes.
DIVIDED = ("attribute", "erase")


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # the hub's retries are no news; its last word is
    usual, warnings.formatwarning = warnings.formatwarning, _one_line
    try:
        _run(sys.argv[1:])
    except InputError as error:
        print(f"neuronforget: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            "neuronforget: stopped, nothing was written; run demo or compare again to go on from the finished edits",
            file=sys.stderr,
        )
        sys.exit(130)
    finally:
        warnings.formatwarning = usual


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Write a warning without the line of code that it came from: on the command line nobody called it."""
    return f"{'warning' if category is UserWarning else category.__name__}: {' '.join(str(message).split())}\n"


def _run(words: list[str]) -> None:
    """Run the command that the words ask for; `evaluate NAME` is a suite, if there is one of that name."""
    names = [word.partition("=")[0] for word in words if word.startswith("--") and len(word) > 2]
    if again := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise InputError(f"{again} is given twice: the first would be dropped; put all its values after one")
    _check_named(words)
    _check_alone(words)
    suite = words[1].removeprefix("--") if words[:1] == ["evaluate"] and words[1:2] else ""
    if suite in SUITES:
        tyro.cli(SUITES[suite], prog=f"neuronforget evaluate {suite}", args=words[2:])
        return
    app = tyro.extras.SubcommandApp()
    for command in COMMANDS:
        app.command(command)
    about = "Find the neurons that carry a piece of knowledge, erase it, and measure what that did."
    app.cli(prog="neuronforget", description=about, args=words)


def _check_alone(words: list[str]) -> None:
    """Raise InputError in a launch of several processes for a command that would do, and write, all of it in each."""
    name = words[0] if words and not words[0].startswith("-") else ""
    if in_launch() and name not in ("", *DIVIDED):
        raise InputError(f"{name} does not divide its work over processes: run it in one, without torchrun")


def _check_named(words: list[str]) -> None:
    """Raise InputError where `evaluate` is given neither a benchmark nor a file, before it says what else it lacks."""
    name = words[1] if words[:1] == ["evaluate"] and words[1:2] else "-"
    if not (name.startswith("-") or name in SUITES or Path(name).suffix or Path(name).exists()):
        raise InputError(f"{name!r} is neither a file nor a benchmark; benchmarks are {', '.join(SUITES)}")
