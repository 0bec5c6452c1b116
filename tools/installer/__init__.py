"""The installer behind `install.sh`: learns what it can of the portal, shows its plan, and carries it out.

Uses nothing but Python's own library, since it runs before there is an environment.
"""
