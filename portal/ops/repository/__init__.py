"""The repository: the directory of archives, and what is recorded about each.

Promises that an archive exists if and only if its final name does, that a record is complete or absent, and that
nothing is removed while it is being read. May import archive, postgres, storage, filesystem, runtime, settings and the
core.
"""
