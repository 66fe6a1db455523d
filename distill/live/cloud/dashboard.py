"""The page that shows what the service knows: readable files, joined into one that loads nothing else."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
# In the order in which they are read: what is used comes before who uses it.
SCRIPTS = ("dom", "api", "palette", "lanes", "charts", "live", "health", "gate")
STYLE_HERE, SCRIPT_HERE = "/* dashboard.css */", "/* dashboard.js */"


@cache
def page() -> tuple[bytes, str]:
    """The page, and the Content-Security-Policy that lets it do what it does and nothing else."""
    style = _text("dashboard.css")
    script = "\n".join(_text(name) for name in (*(f"dashboard_{part}.js" for part in SCRIPTS), "dashboard.js"))
    assert "</script" not in script
    assert "</style" not in style
    html = _text("dashboard.html").replace(STYLE_HERE, style).replace(SCRIPT_HERE, script)
    policy = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
    }
    return html.encode(), "; ".join(f"{name} {value}" for name, value in policy.items())


def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
