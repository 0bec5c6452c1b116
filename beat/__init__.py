"""Unattended work: schedules that catch up, and the watcher of the uploads.

Both send tasks of `worker` by name; neither does the work. The repository shows what is done, so they keep no record of
it. May import the worker and the engine; promises that a missed slot, a lost message or a restart delays work and never
loses it.
"""
