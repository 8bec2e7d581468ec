"""`headrace pool`: look at pools, ask why a request went where it went, check and convert manifests."""
