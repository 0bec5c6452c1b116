"""Drills: an archive is restored for a test, compared with what it says of itself, and the copy removed.

Promises that nothing live is touched and nothing stays behind. May import restore, backup, verify and what these may.
"""
