"""The command line's entry: commands, and errors as one line with exit status 2."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from fastsample.cli import bench, decode, doctor, report, sample, solvers, tarflow, tune

app = typer.Typer(
    help="Fast, training-free diffusion sampling on Hugging Face diffusers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("solvers")(solvers.solvers)
app.command("sample")(sample.sample)
app.command("bench")(bench.bench)
app.command("report")(report.report)
app.command("tune")(tune.tune)
app.command("decode")(decode.decode)
app.command("doctor")(doctor.doctor)
app.add_typer(tarflow.app, name="tarflow")


def run() -> NoReturn:
    """Run the command of sys.argv; wrong input ends in one line on stderr and status 2."""
    try:
        result = app(standalone_mode=False)
    except (ValueError, OSError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        print("interrupted: results so far are kept; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # click's usage errors know their message; anything else is a defect of ours
        if not hasattr(error, "format_message"):
            raise
        fail(error.format_message())
    sys.exit(result if isinstance(result, int) else 0)


def fail(message: str) -> NoReturn:
    """Print `error: message` as one line and exit with 2."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    run()
