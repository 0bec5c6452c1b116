"""PostgreSQL: client programs, connections, dumps, and queries about a server.

Promises that passwords reach programs through the environment alone, and that a hung server ends in an error. May
import filesystem, runtime, settings and the core. This module imports nothing, so that a backup of uploads does not
load the database driver.
"""
