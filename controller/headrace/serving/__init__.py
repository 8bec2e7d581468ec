"""What every long-running process needs: TLS files, servers and ports, health, an HTTP client, background tasks, logs.

Nothing is imported here: `headrace simulate` and the CLI use some of it without gRPC."""
