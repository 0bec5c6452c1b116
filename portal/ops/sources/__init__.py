"""What a backup reads from: the PostgreSQL database, and the directories of uploads and audit logs.

Nothing is imported here: a media backup does not pay for the database driver.
"""
