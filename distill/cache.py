"""Ask a teacher once: `accelerate launch distill/cache.py recipe=NAME key=value ...`; --help says more."""

if not __package__:  # started as a file: the repository, not this folder, comes first on the path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

from distill.command import run


def main() -> int:
    return run("cache")


if __name__ == "__main__":
    raise SystemExit(main())
