"""A small student of every family: student_examples/NAME.py has EXAMPLES for students/NAME.py, label -> options.

Each variant that is worth trying has a label. Contract tests find the module by the student's name, and try every
example a dozen times, so an example is as small as its family allows: few frames, about 32 pixels, few channels.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from distill import plugins

Examples = dict[str, dict[str, object]]  # label -> options


def lacking() -> list[str]:
    """Students without a file of examples."""
    return [name for name in plugins.names("student") if not Path(__file__).with_name(f"{name}.py").exists()]


def examples(name: str) -> Examples:
    found: Examples = importlib.import_module(f"student_examples.{name}").EXAMPLES
    return found
