"""Exported files, run by their own runtimes: arrays in, arrays out. No torch here, and nothing is imported but the
runtime that a file needs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.deploy.card import ExportCard
from distill.errors import UserError

Arrays = Sequence[np.ndarray]
Session = Callable[[Arrays], list[np.ndarray]]  # of the types that the ports have

NEEDED = {  # what a runtime is called in Python, and where it comes from
    "litert": ("ai_edge_litert.interpreter", "ai-edge-litert"),
    "onnx": ("onnxruntime", "onnxruntime"),
    "executorch": ("executorch.runtime", "executorch"),
    "openvino": ("openvino", "openvino"),
}


def open_session(file: Path, card: ExportCard, threads: int) -> Session:
    """The file in its runtime, with so many threads."""
    module, package = NEEDED[card.format]
    try:
        runtime = importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{file} needs {package}, which is not installed: pip install {package}") from error
    try:
        run = OPEN[card.format](runtime, file, threads)
    except Exception as error:  # each runtime has its own
        raise UserError(f"{file} cannot be opened by {package}: {first_line(error)}") from error

    def ask(given: Arrays) -> list[np.ndarray]:
        try:
            return run(given)
        except Exception as error:
            raise UserError(f"{package} cannot ask {file}: {first_line(error)}") from error

    return ask


def first_line(error: Exception) -> str:
    """What a runtime or converter complains of; some say it on a page, and some say nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _litert(runtime: Any, file: Path, threads: int) -> Session:
    interpreter = runtime.Interpreter(str(file), num_threads=threads)
    interpreter.allocate_tensors()
    inputs = [port["index"] for port in in_order(interpreter.get_input_details())]
    outputs = [port["index"] for port in in_order(interpreter.get_output_details())]

    def run(given: Arrays) -> list[np.ndarray]:
        for index, array in zip(inputs, given, strict=True):
            interpreter.set_tensor(index, array)
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in outputs]

    return run


def in_order(details: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As the student takes and gives them: litert-torch numbers their names and lists them in any order."""
    return sorted(details, key=lambda port: int("".join(filter(str.isdigit, port["name"].split(":")[0])) or 0))


def _onnx(runtime: Any, file: Path, threads: int) -> Session:
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]

    def run(given: Arrays) -> list[np.ndarray]:
        found: list[np.ndarray] = session.run(None, dict(zip(names, given, strict=True)))
        return found

    return run


def _openvino(runtime: Any, file: Path, threads: int) -> Session:
    core = runtime.Core()
    how = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(str(file), "CPU", how).create_infer_request()

    def run(given: Arrays) -> list[np.ndarray]:
        found = request.infer(list(given), share_inputs=True)
        return [np.array(found[i]) for i in range(len(found))]

    return run


def _executorch(runtime: Any, file: Path, threads: int) -> Session:
    import torch
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

    _unsafe_reset_threadpool(threads)  # its own threads, which torch's settings do not reach
    method = runtime.Runtime.get().load_program(str(file)).load_method("forward")

    def run(given: Arrays) -> list[np.ndarray]:
        return [value.numpy().copy() for value in method.execute([torch.from_numpy(array) for array in given])]

    return run


OPEN = {"litert": _litert, "onnx": _onnx, "openvino": _openvino, "executorch": _executorch}
