"""Verification: how closely an archive is looked at, and what was found.

Promises that an archive called intact was read to the level that is named. May import chains, repository, archive,
postgres and what these may.
"""
