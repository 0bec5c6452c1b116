"""Chains: a base and its incrementals, their lineage by digests, and reading them as one tree.

Promises that an incremental is read with exactly the archives that it was made against. May import repository, archive
and what these may.
"""
