"""Simulated model server and simulated GPUs, for the local inventory, tests and benchmarks."""
