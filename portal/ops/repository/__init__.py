"""The repository: the directory of archives, and what is recorded of each.

Promises that an archive exists if and only if its final name does, that a record is there whole or not at all, and that
nobody removes what somebody reads. May import archive, postgres, runtime, settings and the core.
"""
