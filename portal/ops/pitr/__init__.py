"""Point-in-time recovery: base backups of the database cluster, the WAL after them, and recovery to a moment.

Promises that the recovery window is computed from the files that exist, that WAL is durable before it is acknowledged,
and that a scratch server changes nothing live. May import chains, repository, archive, postgres, storage and the rooms
below them.
"""
