"""Benchmarks: each module is a command, `python -m benchmarks.NAME`; none is timed in the tests."""
