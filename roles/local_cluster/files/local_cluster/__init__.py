"""A real Kubernetes as processes in namespaces of one machine: addresses, keys, namespaces, nodes.

Only the standard library is used here, but for `pki`, which needs the package cryptography.
"""
