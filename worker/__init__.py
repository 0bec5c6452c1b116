"""The Celery application: what takes work off a queue, and how work is put there.

`operations` is the registry: everything that others have to know to request a task. `client` sends one and reports
its progress. `python -m worker` starts one Celery worker for each queue. The work itself is done by `portal.ops`,
which never imports this.
"""
