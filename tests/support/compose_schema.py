"""What we use of the Compose specification, as a JSON schema: a key or a type that is not in it is a slip of ours.

It is written from the specification's text and is much narrower: everything that it lets pass, the specification does.
"""

from __future__ import annotations

from typing import Any, Final

_TEXT: Final = {"type": "string", "minLength": 1}
_TEXTS: Final = {"type": "array", "items": _TEXT, "minItems": 1, "uniqueItems": True}
_NAME: Final = {"type": "string", "pattern": "^[a-z][a-z_]*$"}
_DURATION: Final = {"type": "string", "pattern": r"^(\d+(ms|s|m|h))+$"}
_SIZE: Final = {"type": "string", "pattern": r"^\d+[kmg]$"}


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _named(value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "propertyNames": _NAME, "additionalProperties": value}


_HEALTHCHECK: Final = _object(
    {
        "test": {
            "type": "array",
            "items": _TEXT,
            "minItems": 2,
            "prefixItems": [{"enum": ["CMD", "CMD-SHELL"]}],
        },
        "interval": _DURATION,
        "timeout": _DURATION,
        "start_period": _DURATION,
        "start_interval": _DURATION,
        "retries": {"type": "integer", "minimum": 1},
    },
    "test",
    "interval",
    "timeout",
    "retries",
)
_CONDITION: Final = _object(
    {
        "condition": {"enum": ["service_started", "service_healthy", "service_completed_successfully"]},
        "required": {"type": "boolean"},
    },
    "condition",
)
_RESOURCES: Final = _object({"memory": _SIZE, "pids": {"type": "integer", "minimum": 1}})
_SERVICE: Final = _object(
    {
        "image": _TEXT,
        "build": _object(
            {"context": _TEXT, "args": {"type": "object", "additionalProperties": {"type": "string"}}}, "context"
        ),
        "pull_policy": {"enum": ["always", "never", "missing", "build"]},
        "extra_hosts": _TEXTS,
        "command": {"type": "array", "items": _TEXT},
        "user": _TEXT,
        "group_add": _TEXTS,
        "init": {"type": "boolean"},
        "restart": {"enum": ["no", "always", "on-failure", "unless-stopped"]},
        "read_only": {"type": "boolean"},
        "tmpfs": _TEXTS,
        "shm_size": _SIZE,
        "cap_drop": _TEXTS,
        "security_opt": _TEXTS,
        "env_file": {
            "type": "array",
            "items": _object({"path": _TEXT, "required": {"type": "boolean"}}, "path"),
        },
        "environment": {
            "type": "object",
            "propertyNames": {"pattern": "^[A-Z][A-Z0-9_]*$"},
            "additionalProperties": {"type": ["string", "integer"]},
        },
        "secrets": _TEXTS,
        "volumes": {"type": "array", "items": {"type": "string", "pattern": r"^[^:]+:/[^:]+(:ro)?$"}},
        "networks": {"anyOf": [_TEXTS, _named(_object({"aliases": _TEXTS}))]},
        "ports": {"type": "array", "items": {"type": "string", "pattern": r"^[0-9.:]+$"}},
        "profiles": _TEXTS,
        "depends_on": _named(_CONDITION),
        "stop_grace_period": _DURATION,
        "healthcheck": _HEALTHCHECK,
        "logging": _object({"driver": _TEXT, "options": {"type": "object", "additionalProperties": _TEXT}}, "driver"),
        "deploy": _object({"resources": _object({"limits": _RESOURCES, "reservations": _RESOURCES})}, "resources"),
    },
)
_NETWORK: Final = _object({"internal": {"type": "boolean"}, "external": {"type": "boolean"}, "name": _TEXT})
_VOLUME: Final = _object({"external": {"type": "boolean"}, "name": _TEXT})

SCHEMA: Final = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]*$"},
        "services": _named(_SERVICE),
        "networks": _named(_NETWORK),
        "volumes": _named(_VOLUME),
        "secrets": _named(_object({"file": _TEXT}, "file")),
    },
    "patternProperties": {"^x-": {}},
    "additionalProperties": False,
}
