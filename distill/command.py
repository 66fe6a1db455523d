"""What every command shares: help, reading the recipe, printing the result, and errors that a person can act on."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import select
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from distill.errors import UserError

# A job is a function of its own name, with _ for -: recipe or other request -> figures. Its docstring is its help.
JOBS = {
    "clips": "distill.clips.survey",
    "train": "distill.training",
    "cache": "distill.teaching.caching",
    "cache status": "distill.teaching.upkeep",
    "cache verify": "distill.teaching.upkeep",
    "cache prune": "distill.teaching.upkeep",
    "probe": "distill.probing.probe",
    "export": "distill.deploy.exporting",
    "measure": "distill.deploy.measuring",
    "prune": "distill.deploy.pruning",
    "live": "distill.live.showing",
    "edge": "distill.live.edge.running",
    "cloud": "distill.live.cloud.serving",
    "cloud devices": "distill.live.cloud.serving",
    "cloud forget": "distill.live.cloud.serving",
    "demo-aiot": "distill.live.aiot",
    "quickstart": "distill.quickstart",
}
ASSUMED = {"quickstart": ("recipe=quickstart", "out=runs/quickstart")}  # what a job is given unless told otherwise
READERS = {  # of jobs that are asked for otherwise than by a recipe; one with Options of its own has no keys besides
    "probe": "distill.probing.request",
    "export": "distill.deploy.export_request",
    "measure": "distill.deploy.measure_request",
    "prune": "distill.deploy.prune_request",
    "live": "distill.live.request",
    "edge": "distill.live.edge.request",
    "cloud": "distill.live.cloud.request",
    "cloud devices": "distill.live.cloud.device_request",
    "cloud forget": "distill.live.cloud.request",
    "demo-aiot": "distill.live.aiot_request",
}
UNHEARD = 141  # exit code of a command whose reader has gone, as shells say it
SHORT_LIST = 3
SHORT = {"clips": dict.fromkeys(("prepare", "frames", "short_side"), "clips.")}  # what a job's own keys leave out
USAGE = f"""distill JOB recipe=NAME key=value ...

jobs: {", ".join(JOBS)}
distill JOB --help     what the job does, an example, and every key
distill recipes        the recipes that there are"""


def dispatch(arguments: Sequence[str] | None = None) -> int:
    """The command `distill`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    job, rest = (given[0], given[1:]) if given else ("help", [])
    if job in JOBS:
        return run(job, rest)
    if job == "recipes":
        return guarded(_list_recipes)
    if job in ("-h", "--help", "help"):
        return guarded(lambda: print(USAGE))
    print(f"error: there is no job {job!r}; known: {', '.join([*JOBS, 'recipes'])}", file=sys.stderr)
    return 2


def run(job: str, arguments: Sequence[str] | None = None) -> int:
    """Do a job with the recipe that the arguments name. Returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and f"{job} {given[0]}" in JOBS:
        job = f"{job} {given.pop(0)}"
    function = function_of(job)
    if {"-h", "--help"} & set(given):
        return guarded(lambda: print(f"{inspect.getdoc(function)}\n\n{_help(job)}"))

    def asked() -> None:
        request = _read(job, given)
        _show(job, request.out, function(request))
        _leave()

    return guarded(asked)


def function_of(job: str) -> Callable[[Any], dict[str, Any]]:
    found: Callable[[Any], dict[str, Any]] = getattr(
        importlib.import_module(JOBS[job]), job.split()[-1].replace("-", "_")
    )
    return found


def _read(job: str, given: Sequence[str]) -> Any:
    """What a job is asked for; it says in which folder, `out`, its answer will be."""
    if job in READERS:
        return importlib.import_module(READERS[job]).read(given)
    from distill.recipe import read_recipe

    whole = (SHORT.get(job, {}).get(argument.partition("=")[0], "") + argument for argument in given)
    return read_recipe([*ASSUMED.get(job, ()), *whole])


def _leave() -> None:
    """Part from the other processes: who ends while gloo's threads are at work may be aborted by C++."""
    distributed = sys.modules.get("torch.distributed")  # who has not imported it has joined nobody
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def guarded(job: Callable[[], object]) -> int:
    """Do the job; a UserError becomes one line on stderr and exit code 2."""
    try:
        job()
        sys.stdout.flush()
    except BrokenPipeError:
        if _is_heard():
            raise
        return UNHEARD
    except UserError as error:
        _complain(str(error))
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        _complain(f"{error.filename}: {error.strerror}")
        return 2
    except RuntimeError as error:
        told = _meaning(str(error))
        if told is None:
            raise
        _complain(told)
        return 2
    except KeyboardInterrupt:
        if _first_process():
            print(
                "stopped; the same command goes on (a run with resume=true, from its last checkpoint)", file=sys.stderr
            )
        return 130
    return 0


def _is_heard() -> bool:
    """Whether somebody still reads what is printed; `distill ... | head` stops early, which is no error of ours."""
    looking = select.poll()
    looking.register(sys.stdout, 0)
    if not looking.poll(0):  # a pipe that nobody reads is in error, asked for or not
        return True
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed at the end
    return False


def _meaning(error: str) -> str | None:
    """What torch's own complaints mean, if they are about another process."""
    if error.startswith("DataLoader worker (pid"):  # raised wherever the signal found us
        how = error.partition(" is killed by ")[2].strip(". ") or "it ended without a word"
        return f"a process that reads clips was killed ({how}); if memory ran out, take fewer clips.workers"
    if "Connection closed by peer" in error or "Connection reset by peer" in error:
        return "another process of this job has ended; it says why"
    return None


def _complain(text: str) -> None:
    """One line; what a loader's worker raised comes with its traceback, of which the last line is the message."""
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    process = "" if _first_process() else f" (process {os.environ['RANK']})"
    print(f"error{process}: {' '.join(text.split())}", file=sys.stderr)


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _show(job: str, out: str, figures: dict[str, Any]) -> None:
    """The result as a table, and where the report lies."""
    from distill.keys import flatten
    from distill.run_log import Talk

    rows = [(name, _plain(name, value)) for name, value in flatten(figures).items()]
    talk = Talk(_first_process())
    if rows:
        talk.table(out, ("", "result"), rows)
    report = Path(out) / "report.html"
    if report.exists() and not job.startswith("cache"):
        talk.say(f"report: {report}")


def _plain(name: str, value: Any) -> str:
    from distill.run_log import percent

    if name.endswith(("top1", "top5")):
        return percent(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _list_recipes() -> None:
    from distill.keys import RECIPES, recipe_names

    for folder in (RECIPES, RECIPES / "live"):
        for name in recipe_names(folder):
            first = (folder / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
            print(f"{name:<24} {first.lstrip('# ')}")


def _help(job: str) -> str:
    """The keys that a job takes."""
    options = getattr(importlib.import_module(READERS[job]), "Options", None) if job in READERS else None
    return "\n".join(["Keys (key=value):", *_key_lines(options, "")]) if options else _keys()


def _keys() -> str:
    """Every key of a recipe with its default and meaning."""
    from distill import plugins
    from distill.objective import losses, terms
    from distill.recipe import Recipe

    lines = ["Keys (key=value; a recipe's YAML has the same):", *_key_lines(Recipe, "")]
    for kind, key in (("source", "clips.source"), ("student", "student"), ("teacher", "teacher")):
        for name in plugins.names(kind):
            lines += ["", f"with {key}.name={name}:", *_key_lines(plugins.module(kind, name).Options, f"{key}.")]
    lines += ["", "terms of the objective:", *_key_lines(terms.Term, "objective.LOSS.")]
    for name, loss in losses.LOSSES.items():
        own = ", ".join(terms.shown(name))
        about = f"{inspect.getdoc(loss.function)}" + (f" Options: {own}." if own else "")
        lines.append(_key_line(f"objective.{name}", about))
    return "\n".join(lines)


def _key_lines(kind: type[Any], prefix: str) -> Iterator[str]:
    about = {name: text for base in reversed(kind.__mro__[:-1]) for name, text in _field_docs(base).items()}
    hints = get_type_hints(kind)
    for item in fields(kind):
        key, hint = f"{prefix}{item.name}", hints[item.name]
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from _key_lines(hint, f"{key}.")
            continue
        yield _key_line(key + _default(item), about.get(item.name, ""))


def _default(item: Field[Any]) -> str:
    """What a key is unless told otherwise, as it would be given; long lists are left out."""
    value = item.default_factory() if item.default_factory is not MISSING else item.default
    if isinstance(value, list) and 0 < len(value) <= SHORT_LIST and not any(isinstance(each, list) for each in value):
        return f"=[{','.join(map(str, value))}]"
    unsaid = isinstance(value, list | dict) or is_dataclass(value) or value in (MISSING, "???", None, "")
    return "" if unsaid else f"={str(value).lower()}"


def _key_line(key: str, about: str) -> str:
    return textwrap.fill(" ".join(about.split()), 110, initial_indent=f"  {key:<30} ", subsequent_indent=" " * 33)


def _field_docs(kind: type[Any]) -> dict[str, str]:
    """The string that stands under each field of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for item, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(item, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(item.target, ast.Name)
            found[item.target.id] = str(text.value.value)
    return found
