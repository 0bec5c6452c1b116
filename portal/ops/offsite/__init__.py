"""Off-site copies: archives, encrypted and stored elsewhere, and fetched back.

Promises that a copy exists if and only if its commit does, that it returns the archive byte for byte, and that nothing
is overwritten. May import retention, verify, pitr, chains, repository, archive, storage and the rooms below them.
Single objects, such as WAL segments, are stored by `portal.ops.storage.objects`.
"""
