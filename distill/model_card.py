"""What a model card says, made from facts: how large the student is, what it learned from, how well it does.

Facts are plain JSON, as a run knows them: `recipe` (the merged one), `summary` (figures), `splits` (clips in each),
`made` (with what, where, when). Whatever is not known is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult

from distill.evaluate import REALTIME
from distill.objective.losses import LOSSES
from distill.outputs import ClipSpec

TASK = "video-classification"
TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

A network that recognises actions, small enough for a phone, a camera or a box on a wall. It was trained with *distill*,
a toolkit for knowledge distillation.

```python
from distill.hub import DistilledStudent
student = DistilledStudent.from_pretrained("FOLDER OR HUB ID")
answer = student(frames)  # uint8 {{ frames }} -> answer.logits {{ logits }}, answer.latent {{ latent }}
```

`student.classes` are the names of the actions, in the order of the logits.
{% for heading, rows in tables %}
## {{ heading }}

| | |
|---|---|
{%- for name, value in rows %}
| {{ name }} | {{ value }} |
{%- endfor %}
{% endfor %}
{%- if recipe != "{}" %}
## Recipe

`distill train recipe=FILE`, with this in FILE, trains it again.

```yaml
{{ recipe }}
```
{%- endif %}
"""
ANSWERING = {name for name, loss in LOSSES.items() if loss.answers}
# What is measured -> what it is called here, what on the Hub, and the losses of which one trains for it
METRICS = {
    "top1": ("Top-1", "accuracy", ANSWERING),
    "top5": ("Top-5", "accuracy", ANSWERING),
    "reconstruction": ("Mean squared error of the reconstruction", "mse", {"reconstruction"}),
}
FEW = 6
Rows = list[tuple[str, str]]


def tables(student: str, classes: Sequence[str], spec: ClipSpec, facts: Mapping[str, Any]) -> list[tuple[str, Rows]]:
    """Headings and rows, without those that nothing is known for."""
    found = {
        "The student": list(_student(student, classes, spec, facts)),
        "What it learned from": list(_lessons(facts)),
        "How well it does on the test split": list(_scores(facts)),
    }
    return [(heading, [(name, _cell(value)) for name, value in rows]) for heading, rows in found.items() if rows]


def _student(
    student: str, classes: Sequence[str], spec: ClipSpec, facts: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    summary, made = part(facts, "summary"), part(facts, "made")
    yield "Task", f"action recognition, {len(classes)} classes"
    yield "Input", f"{spec.frames} frames of {spec.size} x {spec.size} pixels, uint8 RGB; it normalises them itself"
    yield "Network", student
    if number(summary.get("parameters")):
        yield "Parameters", f"{summary['parameters']:,} take part in recognition"
    if number(summary.get("gflops")):
        yield "Arithmetic", f"{summary['gflops']:.3g} GFLOPs a clip (a multiplication and an addition are two)"
    if number(summary.get("milliseconds")):
        where = f" ({made['machine']})" if "machine" in made else ""
        yield "Time", f"{summary['milliseconds']:.3g} ms a clip on a CPU{where}"
    if made:
        yield "Made", ", ".join(f"{name} {made[name]}" for name in ("python", "torch", "date") if name in made)


def _lessons(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    recipe, splits = part(facts, "recipe"), part(facts, "splits")
    clips, objective = part(recipe, "clips"), part(recipe, "objective")
    if source := part(clips, "source"):
        yield "Data", _named(source)
    if splits:
        yield "Clips", ", ".join(f"{count} {split}" for split, count in splits.items())
    if number(clips.get("labelled")):
        yield "Labels", f"{clips['labelled']:.0%} of the training clips have one"
    if recipe:
        yield "Teacher", _named(part(recipe, "teacher")) or "none"
        yield "Objective", "; ".join(_named({"name": name, **objective[name]}) for name in _trained(facts))
    if number(part(facts, "summary").get("steps")):
        yield "Steps", str(part(facts, "summary")["steps"])


def _named(node: Mapping[str, Any]) -> str:
    """A plug-in or a loss as its name and the options that say something."""
    said = [
        f"{key} {_plain(value)}" for key, value in node.items() if key != "name" and value not in (None, "", [], {})
    ]
    return str(node.get("name", "")) + (f" ({', '.join(said)})" if said else "")


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return _named(value) if "name" in value else " ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return " + ".join(map(_plain, value)) if len(value) <= FEW else f"({len(value)} of them)"
    return str(value)


def _scores(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in _metrics(facts).items():
        name, kind, _ = METRICS[key]
        yield name, f"{value:.1%}" if kind == "accuracy" else f"{value:.4g}"
    top1 = part(facts, "summary", REALTIME).get("top1")
    if "top1" in _metrics(facts) and number(top1):
        yield "Top-1 in real time, by one look at each clip", f"{top1:.1%}"


def _metrics(facts: Mapping[str, Any]) -> dict[str, float]:
    """The test metrics that the student was trained for: what it was not, says nothing about it."""
    test = part(facts, "summary", "test") if part(facts, "summary").get("steps") else {}
    return {
        key: test[key] for key in METRICS if number(test.get(key)) and METRICS[key][2].intersection(_trained(facts))
    }


def _trained(facts: Mapping[str, Any]) -> list[str]:
    """The losses that were in the sum."""
    objective = part(facts, "recipe", "objective")
    return [name for name, term in objective.items() if isinstance(term, Mapping) and term.get("weight")]


def results(student: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The test metrics as the Hub lists them."""
    data, known = part(facts, "recipe", "clips", "source").get("name"), _metrics(facts)
    if not data or not known:
        return {}
    found = [
        EvalResult(
            task_type=TASK,
            dataset_type=str(data),
            dataset_name=str(data),
            dataset_split="test",
            metric_type=METRICS[key][1],
            metric_name=METRICS[key][0],
            metric_value=round(value, 4),
        )
        for key, value in known.items()
    ]
    return {"model_name": student, "eval_results": found}


def part(tree: Any, *keys: str) -> Mapping[str, Any]:
    """A branch of a tree; empty where there is none."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree if isinstance(tree, Mapping) else {}


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: str) -> str:
    return " ".join(value.replace("|", "\\|").split())
