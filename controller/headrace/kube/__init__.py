"""The Kubernetes API: one client, a list-watch reflector, patches. Objects are plain dictionaries here; what they mean
is parsed elsewhere."""
