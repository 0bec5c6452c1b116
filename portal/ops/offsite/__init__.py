"""Off-site copies: archives, and single objects such as WAL, encrypted and stored elsewhere.

Promises that a copy exists if and only if its commit does, that it gives back the archive byte for byte, and that
nothing is ever overwritten. May import chains, repository, archive, storage, runtime, settings and the core.
"""
