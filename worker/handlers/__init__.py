"""The functions that carry operations out: each makes an engine's job from settings and arguments, and runs it.

Each is named by an entry of `worker.operations`, takes a `TaskRequest` and returns an `Outcome`. They import the engine
and `worker.execution`; nothing imports them by name.
"""
