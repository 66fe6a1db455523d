"""Judge a student's latents: `accelerate launch distill/probe.py recipe=NAME key=value ...`; --help says more."""

if not __package__:  # started as a file: the repository, not this folder, comes first on the path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

from distill.command import run


def main() -> int:
    return run("probe")


if __name__ == "__main__":
    raise SystemExit(main())
