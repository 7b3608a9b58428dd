"""The `fastsample` command: one file a command."""
