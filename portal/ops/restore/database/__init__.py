"""Restores a database: fills and checks it next to the live one, then swaps; or replaces the contents in place.

Promises that the live database is unchanged until the swap, and that the swap can be rolled back. May import
repository, postgres and the rooms below them, and nothing of restore/files.
"""
