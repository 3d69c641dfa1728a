"""Benchmarks. Each is ``python -m pipelines.bench.NAME [--quick]``, checks that what it compares agrees, and prints
its figures as one JSON object on the last line."""
