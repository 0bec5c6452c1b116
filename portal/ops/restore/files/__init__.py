"""Restores a tree of files: staged inside the target tree, then put in place by renames.

Promises that an archive, whatever it contains, changes nothing outside the tree, and that every rename can be reversed.
May import repository, chains, archive, filesystem and the rooms below them, and nothing of restore/database.
"""
