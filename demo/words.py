"""Prose like that of scanners: varied, and the same for the same seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

WEAKNESSES = {
    22: "Path traversal",
    78: "OS command injection",
    79: "Cross-site scripting",
    89: "SQL injection",
    200: "Information exposure",
    287: "Improper authentication",
    295: "Improper certificate validation",
    327: "Broken cryptographic algorithm",
    352: "Cross-site request forgery",
    502: "Deserialization of untrusted data",
    601: "Open redirect",
    611: "XML external entity reference",
    798: "Hard-coded credentials",
    918: "Server-side request forgery",
}
SEVERITIES = ("Critical", "High", "Medium", "Low", "Info")
SCANNERS = ("Semgrep", "Trivy", "Bandit", "CodeQL", "Nuclei", "Grype")

_SUBJECTS = (
    "The handler", "An attacker", "The session token", "A crafted request", "The template", "The upload endpoint",
    "The query builder", "The parser", "This dependency", "The administrator's view", "A stale cache entry",
    "The redirect target", "The background job", "The webhook receiver", "The export routine", "A signed cookie",
)  # fmt: skip
_VERBS = (
    "passes", "reads", "exposes", "concatenates", "accepts", "forwards", "stores", "logs", "trusts", "deserializes",
    "overwrites", "resolves", "compares", "truncates", "decodes", "renders",
)  # fmt: skip
_OBJECTS = (
    "user input", "the raw header", "an internal address", "credentials", "the file name", "a query parameter",
    "unchecked JSON", "the tenant's identifier", "a temporary path", "the private key", "stack traces", "the issuer",
    "personal data", "an object reference", "the request body", "environment variables",
)  # fmt: skip
_ENDINGS = (
    "without validation", "before the permission check", "in clear text", "across tenants", "to a shell",
    "when the debug flag is set", "in versions before 4.2.1", "although the policy forbids it", "on every request",
    "after the session has ended", "through a proxy", "with a predictable nonce", "into the page", "by default",
    "if the header is repeated", "under concurrent access",
)  # fmt: skip
_FOLDERS = ("src", "api", "core", "billing", "accounts", "reports", "vendor", "auth", "jobs", "plugins", "web", "lib")
_FILES = ("views", "models", "client", "parser", "export", "session", "upload", "query", "tokens", "render", "admin")
_SUFFIXES = ("py", "ts", "java", "go", "rb", "tf")


def sentence(rng: Random) -> str:
    """Return a sentence with a number that is almost unique."""
    words = (rng.choice(choices) for choices in (_SUBJECTS, _VERBS, _OBJECTS, _ENDINGS))
    return f"{' '.join(words)} (see {source_path(rng)}:{rng.randrange(1, 4000)})."


def paragraph(rng: Random, sentences: int) -> str:
    """Return several sentences."""
    return " ".join(sentence(rng) for _ in range(sentences))


def source_path(rng: Random) -> str:
    """Return the path of a source file."""
    folders = "/".join(rng.choice(_FOLDERS) for _ in range(rng.randrange(1, 4)))
    return f"{folders}/{rng.choice(_FILES)}_{rng.randrange(1000)}.{rng.choice(_SUFFIXES)}"
