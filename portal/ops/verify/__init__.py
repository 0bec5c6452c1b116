"""Verification: checks archives to a chosen level, and records the results.

Promises that an archive reported as intact was checked to the stated level. May import chains, repository, archive,
postgres and the rooms below them; and `pitr`, to check base backups.
"""
