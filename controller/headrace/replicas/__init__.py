"""Replicas that all serve one pool: what they tell each other of their requests, and the streams that carry it."""
