"""Off-site copies: archives, encrypted and stored elsewhere, and brought back from there.

Promises that a copy exists if and only if its commit does, that it gives back the archive byte for byte, and that
nothing is ever overwritten. May import retention, verify, chains, repository, archive, storage, runtime, settings and
the core. Single objects, such as segments of WAL, are stored by `portal.ops.storage.objects`.
"""
