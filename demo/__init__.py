"""A demonstration portal: embedded servers and sample data, for the quick start, the tests and the benchmarks.

Not for production. May import the engine, the worker, beat and the commands.
"""
