"""Drills: restores an archive for a test, compares it with the backup, and removes it again.

Promises that nothing live is changed and nothing is left behind. May import restore, offsite, verify, retention, pitr,
chains, repository and the rooms below them.
"""
