"""Every job under one command: `distill JOB recipe=NAME key=value ...`."""

if not __package__:  # started as a file: the repository, not this folder, comes first on the path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

from distill.command import dispatch


def main() -> int:
    return dispatch()


if __name__ == "__main__":
    raise SystemExit(main())
