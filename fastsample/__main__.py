"""`python -m fastsample`: the command line, as launchers of several processes start it."""

from fastsample.cli.main import run

if __name__ == "__main__":
    run()
