"""Chains: a base and its incrementals, linked by digests, and read as one tree.

Promises that an incremental is read only with the archives that it was made on. May import repository, archive and the
rooms below them.
"""
