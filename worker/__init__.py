"""The Celery application that will run backups and restores as tasks. It is not built yet.

What will live here: the application and its configuration, tasks as thin as their names, JSON logging, and the locks
that a task takes on its way in. The work itself is done by `portal.ops`, which never imports this package.
"""
