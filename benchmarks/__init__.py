"""Benchmarks: the speed of this project compared with programs that people use instead.

`tools/benchmark.sh` makes its own data, runs every program as a whole process, one after the other in rounds, and
prints medians. It reports and is not a test; nothing else depends on it. May import every other part of the project.

    data, findings   the files to back up, made from a seed
    database         the embedded PostgreSQL to dump
    measure          the time and memory of one process
    cases            the comparisons and their targets
    rounds           the order of runs
    report           the tables
"""
