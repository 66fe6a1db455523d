"""Everything a run says: on the console, and to metrics.jsonl and TensorBoard in its folder.

On a terminal long work shows a live bar; elsewhere it prints a plain line now and then.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from distill.files import publish_text

WIDE = 1000  # a pipe or a file has no edge to keep to
PLAIN_SECONDS = 10.0  # between two lines of progress when nobody watches a terminal


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


class Talk:
    """The console. A process that is not the first keeps silent, warnings apart."""

    def __init__(self, active: bool = True) -> None:
        self.active = active
        self.console = Console(highlight=False, soft_wrap=True, quiet=not active)
        if not self.console.is_terminal:
            self.console.width = WIDE
        self.warnings = Console(highlight=False, soft_wrap=True, stderr=True)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """What a person should see whichever process met it."""
        process = "" if self.active else f"(process {os.environ.get('RANK', '?')}) "
        self.warnings.print(process + text, markup=False)

    def table(self, title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        table = Table(title=title, title_justify="left", title_style="bold")
        for i, name in enumerate(head):
            table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    @contextmanager
    def track(self, what: str, total: int, done: int = 0) -> Iterator[Track]:
        """A bar for `total` pieces of work."""
        if not (self.console.is_terminal and self.active):
            yield _Lines(self, what, total, done)
            return
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[news]}"),
            console=self.console,
        )
        with bar:
            yield _Bar(bar, what, total, done)


class Track:
    """Reports progress of one piece of long work."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done, self.first, self.started, self.news = total, done, done, time.monotonic(), ""
        self.told = False  # that it is done

    @property
    def rate(self) -> float:
        """Pieces a second, so far."""
        return (self.done - self.first) / max(1e-9, time.monotonic() - self.started)

    def advance(self, pieces: int = 1, news: str = "") -> None:
        self.done = min(self.total, self.done + pieces)
        self.show(news)

    def show(self, news: str) -> None:
        raise NotImplementedError


class _Bar(Track):
    def __init__(self, bar: Progress, what: str, total: int, done: int) -> None:
        super().__init__(total, done)
        self.bar, self.task = bar, bar.add_task(what, total=total, completed=done, news="")

    def show(self, news: str) -> None:
        self.news = news or self.news
        self.bar.update(self.task, completed=self.done, news=self.news)


class _Lines(Track):
    def __init__(self, talk: Talk, what: str, total: int, done: int) -> None:
        super().__init__(total, done)
        self.talk, self.what, self.last = talk, what, time.monotonic()

    def show(self, news: str) -> None:
        self.news = news or self.news
        now = time.monotonic()
        if self.told or (self.done < self.total and now - self.last < PLAIN_SECONDS):
            return
        self.told = self.done >= self.total
        self.last = now
        left = (self.total - self.done) / max(self.rate, 1e-9)
        ending = f"{now - self.started:.0f} s" if self.done >= self.total else f"{left:.0f} s left"
        pace = f"{self.rate:.1f}/s" if self.rate >= 0.1 else f"{1 / max(self.rate, 1e-9):.0f} s each"
        self.talk.say(f"{self.what}  {self.done}/{self.total}  {pace}  {ending}  {self.news}".rstrip())


class RunLog:
    """Numbers of one run, in its folder: a line of JSON per event, and the same for TensorBoard."""

    def __init__(self, run: Path, from_step: int, active: bool) -> None:
        """Events after `from_step` are forgotten: a resumed run writes them again."""
        self.path, self.active = run / "metrics.jsonl", active
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter  # slow to import: only the process that writes pays

        kept = [row for row in read_metrics(run) if row["step"] <= from_step] if from_step else []
        publish_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.lines = self.path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=from_step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if not self.active:
            return
        self.lines.write(json.dumps({"step": step, **values}) + "\n")
        self.lines.flush()
        for name, value in values.items():
            self.board.add_scalar(name.replace(".", "/"), value, step)

    def close(self) -> None:
        if self.active:
            self.lines.close()
            self.board.close()


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The events of a run, oldest first; a line cut off by a kill is left out."""
    path = run / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
