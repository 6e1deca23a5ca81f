"""The command line: `main` runs a command, and a user's mistake becomes one line.

Commands import what they need when they run, so that the help of each is soon there
(`benchmarks/startup.py`).
"""

from __future__ import annotations

import logging
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException

from halfmeg.cli.commands import (
    ABOUT,
    COMMANDS,
    GROUPS,
    VERSION_HELP,
    print_plainly,
    print_version,
)
from halfmeg.cli.hints import option_hint
from halfmeg.cli.show import escape_unknown_letters
from halfmeg.places.load import blame
from halfmeg.places.place import PlaceWarning
from halfmeg.training.stopping import TrainingDivergedError, TrainingInterruptedError


def build_app() -> typer.Typer:
    """Return the program with all its commands."""
    app = typer.Typer(
        help=ABOUT,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_options)
    groups = {"": app}
    for name, text in GROUPS.items():
        groups[name] = typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None)
    for name, module in COMMANDS.items():
        function = getattr(import_module(f"halfmeg.cli.{module}"), name.replace(" ", "_"))
        group, _, last = name.rpartition(" ")
        groups[group].command(last)(function)
    for name in GROUPS:
        app.add_typer(groups[name], name=name)
    return app


INTERRUPTED = 130
"""The exit code after Ctrl-C."""


def main() -> NoReturn:
    """Run the command line; a user's mistake becomes one line and exit code 2."""
    warnings.simplefilter("ignore", UserWarning)
    warnings.simplefilter("always", PlaceWarning)
    warnings.filterwarnings("always", message=".*this reading of the test set is not noted")
    warnings.filterwarnings("once", message=".*has seen .* could not be checked")
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    _log_own_lines()
    escape_unknown_letters()
    try:
        _refuse_empty(sys.argv[1:])
        try:
            code = build_app()(standalone_mode=False)
        except SystemExit as ended:
            if isinstance(ended.__context__, BrokenPipeError):  # which typer makes a failure of
                raise ended.__context__ from None
            raise
        if code == INTERRUPTED:
            raise KeyboardInterrupt  # which typer makes an exit code of
        sys.exit(code if isinstance(code, int) else 0)
    except TyperException as error:
        message = error.format_message()
        if len(message.splitlines()) > 1:  # no command was named: this is the help
            print_plainly(message)
            sys.exit(2)
        _fail(_explain(error), 2)
    except ValueError as error:
        _fail(str(error), 2)
    except TrainingInterruptedError as error:
        _fail(str(error), 128 + error.signal_number)
    except TrainingDivergedError as error:
        _fail(str(error), 1)
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone, as in `halfmeg models | head -1`
        sys.exit(0)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", 2)
    except KeyboardInterrupt:
        _fail("stopped", INTERRUPTED)
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
            _fail("the memory is not enough; take a smaller batch_size or network", 2)
        if (told := blame(error)) is None:
            raise
        _fail(told, 2)


def _refuse_empty(arguments: list[str]) -> None:
    """Raise where a word is empty, as that of a variable of the shell that is not set."""
    for before, word in zip(["halfmeg", *arguments], arguments, strict=False):
        if not word or (word.startswith("--") and word.endswith("=")):
            where = word.rstrip("=") or before
            raise ValueError(f"nothing stands behind {where}; name a value, or leave it out")


_unseen = logging.NullHandler()


def _log_own_lines() -> None:
    """Let the program's own log reach the screen, and no library's that has no handler itself."""
    logging.getLogger().addHandler(_unseen)
    if logging.lastResort is not None:  # which writes to whatever stderr is then
        logging.getLogger("halfmeg").addHandler(logging.lastResort)


def _show_warning(message: Warning | str, *_: object) -> None:
    print_plainly(f"halfmeg: note: {' '.join(str(message).split())}")


def _fail(message: str, code: int) -> NoReturn:
    line = " ".join(message.split())
    print_plainly(f"halfmeg: {line}")
    sys.exit(code)


def _explain(error: TyperException) -> str:
    """Return a message about the arguments with the bad value and what is allowed."""
    message = error.format_message().rstrip(".")
    context: Any = getattr(error, "ctx", None)
    if context is None:
        return message
    if message.startswith("No such command"):
        return f"{message}; allowed: {', '.join(context.command.list_commands(context))}"
    options = [name for parameter in context.command.params for name in parameter.opts]
    if message.startswith("No such option"):
        asked = message.split()[3].rstrip(":")
        found = next((i for i, a in enumerate(sys.argv) if a.partition("=")[0] == asked), -1)
        wrong, after = ([*sys.argv, ""][found : found + 2]) if found > 0 else (asked, "")
        if "=" not in wrong and after and not after.startswith("-"):
            wrong = f"{wrong}={after}"
        hint = option_hint(wrong, context.command.name)
        if hint:
            return f"No such option: {asked}; {hint}"
        return f"{message}; allowed: {', '.join(name for name in options if name[:2] == '--')}"
    if message.startswith("Got unexpected extra argument") and "--data" in options:
        word = message.rpartition("(")[2].split()[0].rstrip(")")
        if Path(word).exists():
            return f"{message}; data is named by an option: write --data {word}"
    parameter: Any = getattr(error, "param", None)
    for name in parameter.opts if parameter else ():
        if name in sys.argv[:-1]:
            message += f"; found: {sys.argv[sys.argv.index(name) + 1]!r}"
    return f"{message}; see `{context.command_path} --help`"


def _show_version(wanted: bool) -> None:
    if wanted:
        print_version()
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help=VERSION_HELP,
        ),
    ] = False,
) -> None:
    pass
