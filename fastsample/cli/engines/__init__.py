"""The work behind each command. Its file in `fastsample.cli` loads it when the command runs, so that help is fast."""
