"""Restoring a tree of files: staged in the tree itself, then put in place by renames.

Promises that nothing outside the tree is touched, whatever the archive holds, and that every rename can be undone. May
import chains, archive and what these may.
"""
