"""The Celery application: what takes work off a queue, and how work is put there.

`names` is all that others have to know to name a task; `client` hands one over and says how far it is. A worker is
`python -m worker`: one process tree for each lane. The work itself is done by `portal.ops`, which never imports this.
"""
