"""How fast this project is, measured beside the programs that people use instead.

`tools/benchmark.sh` makes its own data, runs every program as a whole process, one after the other and round by round,
and prints medians. It reports; it is not a test, and no other part of the project depends on it.

    data, findings   what is backed up, made from a seed
    database         the embedded PostgreSQL that is dumped
    measure          one process: its time, its memory, its failure
    cases            what is compared with what, and which ratio is wanted
    rounds           the order in which it is run
    report           the tables
"""
