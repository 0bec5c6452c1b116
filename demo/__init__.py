"""A portal to try things on: embedded servers and sample data, for the quick start, the tests and the benchmark.

Nothing in here is for production.
"""
