"""Texts like those of scanners: SARIF documents and small reports, varied like real ones.

Pure: the same random generator gives the same text. Words repeat as in rules and code, while digests, GUIDs, line
numbers and literals do not, so a document compresses about threefold with `gzip -6`. The vocabulary is this module's
own, so that a change of the demonstration's does not change measurements.
"""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

SCANNERS = ("semgrep", "trivy", "codeql", "bandit", "checkov", "gosec", "brakeman", "eslint")
LEVELS = ("error", "warning", "warning", "note")
SUFFIXES = ("py", "ts", "go", "java", "rb", "tf", "yaml")
WEAKNESSES = (
    "CWE-20: Improper Input Validation",
    "CWE-22: Path Traversal",
    "CWE-78: OS Command Injection",
    "CWE-79: Cross-site Scripting",
    "CWE-89: SQL Injection",
    "CWE-200: Exposure of Sensitive Information",
    "CWE-287: Improper Authentication",
    "CWE-295: Improper Certificate Validation",
    "CWE-327: Use of a Broken or Risky Cryptographic Algorithm",
    "CWE-352: Cross-Site Request Forgery",
    "CWE-502: Deserialization of Untrusted Data",
    "CWE-611: Improper Restriction of XML External Entity Reference",
    "CWE-798: Use of Hard-coded Credentials",
    "CWE-918: Server-Side Request Forgery",
)
CATEGORIES = ("A01:2021", "A02:2021", "A03:2021", "A05:2021", "A07:2021", "A08:2021", "A10:2021")
_WORDS = """
a access account action address after against all allow an and any api application argument as attacker attribute
audit authentication authorization avoid be because been before body browser buffer by byte cache call callback can
certificate check cipher class client code command compare condition configuration connection constant container
content context control cookie could credential data database debug decode default dependency directory disable do
document domain dynamic element enable encoding endpoint ensure entity environment error escape evaluate event
exception execute expose expression external field file filter flow for format found from function grant group handler
hash header host if image in injection input insecure instead integer interface into is issue it key known language
length level library limit link list load log loop may memory message method missing model module must name network
never not null object of on option or origin output overflow owner package parameter parse password path pattern
payload permission pipeline policy port prefer private process protocol proxy public query random read redirect
reference regular remote render replace request resource response result return role root route rule sanitize schema
script secret security send serialize server service session setting shell should sign source sql stack state
statement storage stream string subprocess table template temporary text that the this thread time to token trust type
unsafe untrusted update upload url use user validate value variable verify version via vulnerable was weak when where
which will with without write xml
"""
PROSE = _WORDS.split()
NOUNS = [word for word in PROSE if len(word) > 4]
CODE_LINES = (
    "{0} = {1}.{2}({3})",
    "if {0} not in {1}.{2}:",
    'return {0}({1}, {2}=\\"{4}\\")',
    '{0} = os.environ.get(\\"{4}\\", {1})',
    '{0}.{1}(f\\"{4}/{{{2}}}\\")',
    "def {0}({1}, {2}, timeout={5}):",
    "for {0} in {1}.{2}({3}):",
    'raise {0}(\\"{4}\\", {5})',
    "const {0} = await {1}.{2}({3}, {{ {4}: {5} }});",
)


def sarif_document(random: Random, size: int) -> str:
    """Return a SARIF 2.1.0 document of about `size` bytes."""
    scanner = random.choice(SCANNERS)
    rules = [_rule_name(random) for _ in range(random.randint(12, 60))]
    files = [_source_path(random) for _ in range(random.randint(20, 120))]
    described = ",".join(_rule(random, rule) for rule in rules[: max(1, size // 6000)])
    version = f"1.{random.randint(0, 99)}.{random.randint(0, 9)}"
    head = (
        '{"$schema":"https://json.schemastore.org/sarif-2.1.0.json","version":"2.1.0","runs":[{"tool":{"driver":{'
        f'"name":"{scanner}","semanticVersion":"{version}","rules":[{described}]}}}},'
        f'"automationDetails":{{"guid":"{_guid(random)}"}},"columnKind":"utf16CodeUnits","results":['
    )
    results = _fill(size - len(head), lambda: _result(random, rules, files))
    return f"{head}{results}]}}]}}\n"


def finding_report(random: Random, size: int) -> str:
    """Return a small JSON report with a few findings, of about `size` bytes."""
    head = (
        f'{{"scan_id":"{_guid(random)}","scanner":"{random.choice(SCANNERS)}","commit":"{random.randbytes(20).hex()}",'
        f'"branch":"{random.choice(NOUNS)}/{random.choice(NOUNS)}-{random.randint(1, 9999)}","findings":['
    )
    return f"{head}{_fill(size - len(head), lambda: _finding(random))}]}}\n"


def _fill(size: int, item: Callable[[], str]) -> str:
    """Join items up to the length nearest to `size` bytes, at least one."""
    items = [item()]
    length = len(items[0])
    while length + len(following := item()) // 2 < size:
        items.append(following)
        length += len(following) + 1
    return ",".join(items)


def _rule(random: Random, name: str) -> str:
    return (
        f'{{"id":"{name}","name":"{name}","shortDescription":{{"text":"{_sentence(random, 9)}"}},'
        f'"fullDescription":{{"text":"{_sentence(random, 40)}"}},'
        f'"helpUri":"https://rules.example.com/{name}","help":{{"text":"{_sentence(random, 25)}"}},'
        f'"defaultConfiguration":{{"level":"{random.choice(LEVELS)}"}},"properties":{{{_tags(random)}}}}}'
    )


def _result(random: Random, rules: list[str], files: list[str]) -> str:
    index = random.randrange(len(rules))
    line, column = random.randint(1, 2400), random.randint(1, 60)
    return (
        f'{{"ruleId":"{rules[index]}","ruleIndex":{index},"level":"{random.choice(LEVELS)}","guid":"{_guid(random)}",'
        f'"correlationGuid":"{_guid(random)}",'
        f'"message":{{"text":"{_sentence(random, random.randint(8, 30))}"}},"locations":[{{"physicalLocation":{{'
        f'"artifactLocation":{{"uri":"{random.choice(files)}","uriBaseId":"%SRCROOT%"}},"region":{{"startLine":{line},'
        f'"startColumn":{column},"endLine":{line + random.randint(0, 6)},"endColumn":{column + random.randint(4, 80)},'
        f'"charOffset":{random.randint(0, 90_000)},"charLength":{random.randint(9, 999)},'
        f'"snippet":{{"text":"{_snippet(random)}"}}}}}}}}],"partialFingerprints":{{'
        f'"primaryLocationLineHash":"{random.randbytes(8).hex()}:1","matchBasedId/v1":"{random.randbytes(64).hex()}_0"}},'
        f'"fingerprints":{{"sha256/v1":"{random.randbytes(32).hex()}"}},'
        f'"properties":{{"commit":"{random.randbytes(20).hex()}","blob":"{random.randbytes(20).hex()}",'
        f'"evidence":"{b64encode(random.randbytes(48)).decode()}",{_tags(random)}}}}}'
    )


def _finding(random: Random) -> str:
    return (
        f'{{"id":"{_guid(random)}","rule":"{_rule_name(random)}","severity":"{random.choice(LEVELS)}",'
        f'"title":"{_sentence(random, 8)}","description":"{_sentence(random, random.randint(12, 30))}",'
        f'"file":"{_source_path(random)}","line":{random.randint(1, 2400)},"snippet":"{_snippet(random)}",'
        f'"fingerprint":"{random.randbytes(32).hex()}",{_tags(random)}}}'
    )


def _tags(random: Random) -> str:
    return (
        f'"security-severity":"{random.randint(10, 99) / 10}","precision":"high","tags":["security",'
        f'"{random.choice(WEAKNESSES)}","OWASP-{random.choice(CATEGORIES)}"]'
    )


def _sentence(random: Random, words: int) -> str:
    return " ".join(random.choices(PROSE, k=words)).capitalize() + "."


def _snippet(random: Random) -> str:
    return "\\n".join(_code_line(random) for _ in range(random.randint(1, 4)))


def _code_line(random: Random) -> str:
    names = [f"{first}_{second}" for first, second in zip(_nouns(random, 4), _nouns(random, 4), strict=True)]
    return "    " + random.choice(CODE_LINES).format(*names, random.choice(NOUNS), random.randint(0, 9999))


def _nouns(random: Random, count: int) -> list[str]:
    return random.choices(NOUNS, k=count)


def _rule_name(random: Random) -> str:
    return f"{random.choice(SUFFIXES)}.security.{random.choice(NOUNS)}.{'-'.join(_nouns(random, 3))}"


def _source_path(random: Random) -> str:
    directory = "/".join(_nouns(random, random.randint(1, 4)))
    return f"src/{directory}/{'_'.join(_nouns(random, 2))}.{random.choice(SUFFIXES)}"


def _guid(random: Random) -> str:
    digits = random.randbytes(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
