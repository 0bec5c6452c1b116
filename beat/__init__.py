"""Unattended work: schedules that catch up, and the watcher of the uploads.

Both send tasks of `worker` by name; neither does the work. The repository says what is done: they keep no record of it.
"""
