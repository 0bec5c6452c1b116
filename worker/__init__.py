"""The Celery application: takes work off queues, and puts it there.

`operations` is the registry, which has everything needed to request a task. `client` sends tasks and reports their
progress. `python -m worker` starts one Celery worker for each queue. Promises that a task requested twice is done once,
and that only signed tasks are done. `portal.ops` does the work and never imports this; this may import the engine, and
neither beat nor tools.
"""
