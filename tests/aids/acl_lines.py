"""The lines of docs/redis-security.md that make the users of Redis."""

import re
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "redis-security.md"


def acl_lines(user: str) -> list[list[str]]:
    """What an operator sends to make a user, in words; the password is `secret`."""
    text = DOCUMENT.read_text(encoding="utf-8")
    [block] = re.findall(rf"<!-- acl: {user} -->\n```\n(.*?)```", text, re.DOTALL)
    return [line.replace("PASSWORD", "secret").split() for line in block.splitlines()]
