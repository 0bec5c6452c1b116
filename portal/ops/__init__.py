"""The backup and restore engine of Kekkai Portal: a library that knows no Celery, no Redis and no terminal.

`portal` itself has no ``__init__.py``: it is a namespace package, so that this engine installs beside the
portal's own code.
"""
