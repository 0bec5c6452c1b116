"""Point in time: base backups of the database cluster, the WAL that follows them, and recovery to a moment.

Promises that the recovery window is computed from what is there, that WAL is durable before it is acknowledged, and
that a scratch server touches nothing live. May import chains, repository, archive, postgres and what they may.
"""
