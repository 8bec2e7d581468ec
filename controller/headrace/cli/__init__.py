"""The `headrace` command. A subcommand imports its own package only, and only when it is the one asked for."""
