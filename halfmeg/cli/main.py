"""The command line: `main` runs a command, and a user's mistake becomes one line.

Commands import what they need when they run, so that `--help` and a mistyped command answer at
once (`benchmarks/startup.py`).
"""

from __future__ import annotations

import io
import sys
import warnings
from typing import Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException

import halfmeg
from halfmeg.cli import compare, look, new, search, ship, train
from halfmeg.cli.hints import option_hint
from halfmeg.cli.show import SPEAKS, print_line, printable
from halfmeg.places.load import blame
from halfmeg.places.place import PlaceWarning
from halfmeg.training.stopping import TrainingDivergedError, TrainingInterruptedError

app = typer.Typer(
    help="Train, compare and ship image classifiers of fewer than 500,000 parameters.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    look.models, look.summary, look.recipes, train.train, train.resume, train.evaluate,
    compare.plan, compare.compare, compare.report, search.search, ship.export, ship.predict,
    ship.bench, ship.demo, ship.push, ship.pull,
):  # fmt: skip
    app.command()(command)
data_app = typer.Typer(help="Look at data.", no_args_is_help=True, rich_markup_mode=None)
data_app.command("check")(look.data_check)
data_app.command("cache")(look.data_cache)
app.add_typer(data_app, name="data")
new_app = typer.Typer(
    help="Write a file to start from.", no_args_is_help=True, rich_markup_mode=None
)
new_app.command("network")(new.network)
app.add_typer(new_app, name="new")


INTERRUPTED = 130
"""The exit code after Ctrl-C."""


def main() -> NoReturn:
    """Run the command line; a user's mistake becomes one line and exit code 2."""
    warnings.simplefilter("ignore", UserWarning)
    warnings.simplefilter("always", PlaceWarning)
    warnings.filterwarnings("always", message=".*this reading of the test set is not noted")
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a letter it lacks is written as an escape
            stream.reconfigure(errors="backslashreplace")
    try:
        _check_command()
        code = app(standalone_mode=False)
        if code == INTERRUPTED:
            raise KeyboardInterrupt  # which typer makes an exit code of
        sys.exit(code if isinstance(code, int) else 0)
    except TyperException as error:
        message = error.format_message()
        if len(message.splitlines()) > 1:  # no command was named: this is the help
            _print_plainly(message)
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
        if (told := blame(error)) is None:
            raise
        _fail(told, 2)


def _check_command() -> None:
    """Name a mistyped command at once: typer imports pydantic first, which doubles the wait."""
    commands = [c.name or str(c.callback.__name__) for c in app.registered_commands if c.callback]
    known = [*commands, *(str(group.name) for group in app.registered_groups)]
    typed = sys.argv[1] if len(sys.argv) > 1 else "-"
    if not typed.startswith("-") and typed not in known:
        _fail(f"No such command '{typed}'; allowed: {', '.join(known)}", 2)


def _show_warning(message: Warning | str, *_: object) -> None:
    _print_plainly(f"halfmeg: note: {' '.join(str(message).split())}")


def _fail(message: str, code: int) -> NoReturn:
    line = " ".join(message.split())
    _print_plainly(f"halfmeg: {line}")
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
        wrong = next((a for a in sys.argv if a.split("=")[0] in message.split()[3:4]), "")
        hint = option_hint(wrong or message.split()[3].rstrip(":"), context.command.name)
        if hint:
            return f"{message}; {hint}"
        return f"{message}; allowed: {', '.join(name for name in options if name[:2] == '--')}"
    parameter: Any = getattr(error, "param", None)
    for name in parameter.opts if parameter else ():
        if name in sys.argv[:-1]:
            message += f"; found: {sys.argv[sys.argv.index(name) + 1]!r}"
    return f"{message}; see `{context.command_path} --help`"


def _print_plainly(text: str) -> None:
    if SPEAKS:
        sys.stderr.write(printable(text) + "\n")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version as installed_version

        print_line(f"halfmeg {halfmeg.__version__}, torch {installed_version('torch')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the versions of halfmeg and torch.",
        ),
    ] = False,
) -> None:
    pass
