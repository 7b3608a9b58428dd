"""The command line's entry: commands, and errors as one line with exit status 2."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import logging
import os
import sys
from typing import Annotated, Any, NoReturn

import typer

from fastsample.cli import bench, decode, doctor, report, sample, solvers, tarflow, tune
from fastsample.cli.command import Command, Interrupted
from fastsample.version import __version__

HELP = {"help_option_names": ["-h", "--help"]}
REMEDIES = {
    errno.ENOSPC: "free some space; what was written before is kept",
    errno.EDQUOT: "free some of your space; what was written before is kept",
    errno.EROFS: "choose another folder",
    errno.EACCES: "choose another, or its permissions",
}

app = typer.Typer(
    help="Fast, training-free diffusion sampling on Hugging Face diffusers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # markup would eat what stands in brackets
    context_settings=HELP,
)
app.command("solvers", cls=Command)(solvers.solvers)
app.command("sample", cls=Command)(sample.sample)
app.command("bench", cls=Command)(bench.bench)
app.command("report", cls=Command)(report.report)
app.command("tune", cls=Command)(tune.tune)
app.command("decode", cls=Command)(decode.decode)
app.command("doctor", cls=Command)(doctor.doctor)
app.add_typer(tarflow.app, name="tarflow")


def show_version(asked: bool) -> None:
    """Print the version, and end."""
    if asked:
        print(f"fastsample {__version__}")
        raise typer.Exit


@app.callback()
def fastsample(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fast, training-free diffusion sampling on Hugging Face diffusers."""


@functools.cache
def command() -> Any:
    """All of it as click has it."""
    return typer.main.get_command(app)


def run() -> NoReturn:
    """Run the command of sys.argv; wrong input ends in one line on stderr and status 2, Ctrl-C in one and 130."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter shall not end a run
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of a home that cannot be written to
    try:
        result = command()(prog_name="fastsample", standalone_mode=False)
        sys.stdout.flush()
    except Interrupted as stopped:
        end(f"interrupted: {stopped}", 130)
    except BrokenPipeError:  # who read our output has enough
        end("", 1)
    except OSError as error:
        end(f"error: {told(error)}")
    except ValueError as error:
        end(f"error: {error}")
    except Exception as error:  # click's usage errors know their message; anything else is a defect of ours
        if not hasattr(error, "format_message"):
            raise
        text = error.format_message()
        asked_for_nothing = type(error).__name__ == "NoArgsIsHelpError"
        end(text if asked_for_nothing else f"error: {text}{see(error)}", whole=asked_for_nothing)
    sys.exit(result if isinstance(result, int) else 0)


def told(error: OSError) -> str:
    """What went wrong, with the file and a remedy where they are known."""
    if error.errno is None:
        return str(error)
    file = f"{error.filename}: " if error.filename is not None else ""
    remedy = REMEDIES.get(error.errno)
    return f"{file}{error.strerror}" + (f": {remedy}" if remedy else "")


def see(error: Any) -> str:
    """Where a wrong command's help is."""
    ctx = getattr(error, "ctx", None)
    return f" See `{ctx.command_path} --help`" if ctx is not None else ""


def end(message: str, status: int = 2, *, whole: bool = False) -> NoReturn:
    """Print `message` on stderr, as one line unless it is `whole`, and exit with `status`."""
    with contextlib.suppress(OSError):
        print(message if whole else " ".join(message.split()), file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # Python would try again when it ends, and say so
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


if __name__ == "__main__":
    run()
