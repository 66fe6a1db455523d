"""A small box: what an exported file is used for there gets by without torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distill import command
from distill.clips import motion

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

ROOT = Path(__file__).resolve().parents[1]
LARGE = {"torch", "torchvision", "transformers", "timm", "tensorboard", "sklearn", "scipy", "pandas", "pyarrow"}


@pytest.fixture(scope="module")
def exported(tiny_run: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported")
    assert command.run("export", [f"run={tiny_run('tiny')}", f"out={out}", "to=onnx", "precision=fp32"]) == 0
    (file,) = out.glob("*.onnx")
    return file


def modules_of(*arguments: str) -> set[str]:
    """What `distill ...` imports, from its start to its end."""
    code = (
        "import sys; from distill.cli import main; code = main();"
        "print(*{name.partition('.')[0] for name in sys.modules}); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_live(exported: Path, tmp_path: Path) -> None:
    """Of a video that has to be cut and scaled."""
    video = tmp_path / "drawn.mp4"
    motion.encode(motion.draw(motion.Drawing(frames=30, size=96), "drawn", "left", "test"), video)
    given = [f"model={exported}", f"source={video}", "headless=true", f"out={tmp_path / 'out'}"]
    found = modules_of("live", *given)
    assert (tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8")
    assert "onnxruntime" in found
    assert not found & LARGE


def test_measure(exported: Path, tmp_path: Path) -> None:
    given = [f"files={exported}", f"out={tmp_path}", "threads=1", "rounds=1", "seconds=0.001"]
    found = modules_of("measure", *given)
    assert (tmp_path / "measure.html").is_file()
    assert "jinja2" in found
    assert not found & LARGE


def test_help() -> None:
    for job in ("live", "measure"):
        assert not modules_of(job, "--help") & LARGE
