"""The commands: the shell scripts of this directory, and the Python behind them.

A script prepares the environment and passes its arguments unchanged to the module of the same name. Only here are
errors turned into exit codes. Promises that a command's result is either readable text or one JSON object, and that
exit codes mean the same in every command. May import beat, worker and the engine; contains no decision about backups.
"""
