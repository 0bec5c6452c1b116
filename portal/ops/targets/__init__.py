"""Where a restore goes: `files` for the uploads and the audit log, `database` for the database.

Each stages beside what is live, lets the stage take its place, and can take that back.
"""
