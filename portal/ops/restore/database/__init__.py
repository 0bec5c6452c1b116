"""Restoring a database: filled and checked beside the live one, then swapped in; or replaced in place.

Promises that the live database is untouched until the swap, and that the swap can be rolled back. May import postgres
and what it may.
"""
