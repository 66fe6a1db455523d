"""Recognise actions in a running picture: `python -m distill.live model=... source=...`; --help says more."""

from distill.command import run

raise SystemExit(run("live"))
