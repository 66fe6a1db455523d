"""What all pages share: their templates' environment, and how a share is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

# Underscores within a word mean nothing to Markdown.
MARKS = re.compile(r"[\\`*|\[\]~$]|(?<!\w)_|_(?!\w)")


def percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def render(template: str, /, **values: Any) -> str:
    """A template of this folder, .html or .md, with these values; what they say is text in either."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_markdown if template.endswith(".md") else None,
    )
    environment.filters["percent"] = percent
    return environment.get_template(template).render(values)


def _markdown(value: object) -> Markup:
    """Text as Markdown shows it, on one line."""
    if isinstance(value, Markup):
        return value
    line = re.sub(r"[\r\n]+", " ", str(value)).replace("&", "&amp;").replace("<", "&lt;")
    return Markup(MARKS.sub(r"\\\g<0>", line))
