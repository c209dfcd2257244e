"""Measurements of OpenBLIP beside its peers: `python -m benchmarks list`, `python -m benchmarks compare NAME`."""
