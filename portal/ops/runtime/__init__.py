"""The runtime of the engine: child programs, helper processes, progress, logs.

Promises that no child process outlives its parent, that captured output is limited, and that no secret appears in
arguments or a log. May import settings and the core.
"""
