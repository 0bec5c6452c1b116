"""PostgreSQL: its client programs, connections, dumps, and what can be read of a server.

Promises that passwords go through the environment alone, and that a hung server ends in an error. May import runtime,
settings and the core. Nothing is imported here, so that a backup of uploads does not pay for the database driver.
"""
