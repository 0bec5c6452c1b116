"""The installer behind `install.sh`: finds out what it can about the portal, shows its plan, and executes it.

Imports only Python's standard library, since it runs before there is an environment.
"""
