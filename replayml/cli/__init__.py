"""The `replayml` command."""
