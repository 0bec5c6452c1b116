"""The common part of every command: text for people, JSON for programs, progress, signals and exit codes.

On a terminal, a person reads text. If standard output is not a terminal, it gets one JSON object, and the text goes to
standard error.
"""

from tools.terminal.run import StoppedError, run_command

__all__ = ["StoppedError", "run_command"]
