"""What will start work by itself. It is not built yet.

What will live here: the schedules, the catch-up that enqueues every slot without an archive, and the watcher of the
uploads. All of them send tasks of `worker` by name; none of them does the work.
"""
