"""The functions that execute operations: each makes an engine's job from settings and arguments, and runs it.

Each is named by an entry in `worker.operations`, takes a `TaskRequest` and returns an `Outcome`. They may import the
engine and `worker.execution`; no module imports them directly.
"""
