"""InferencePools through an unmodified Envoy Gateway: the extension hook, endpoint discovery and the pools' status."""
