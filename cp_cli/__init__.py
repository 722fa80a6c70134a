"""The `control-panel` command: a module a command, started from `cp_cli.main`."""
