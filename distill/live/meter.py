"""How a session goes: counted as it runs, told at its end."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np

from distill.live.asking import Prediction

LATELY = 60  # frames that the rate of the moment is taken over
MOST = 20_000  # predictions whose times are kept for the figures


class Meter:
    def __init__(self) -> None:
        self.frames = self.predictions = 0
        self.dropped = 0
        self.latencies_ms: deque[float] = deque(maxlen=MOST)
        self.inferences_ms: deque[float] = deque(maxlen=MOST)
        self._began = 0.0
        self._lately: deque[float] = deque(maxlen=LATELY)

    def frame(self) -> None:
        now = time.monotonic()
        self._began = self._began or now
        self.frames += 1
        self._lately.append(now)

    def prediction(self, prediction: Prediction) -> None:
        self.predictions += 1
        self.latencies_ms.append(prediction.latency_ms)
        self.inferences_ms.append(prediction.inference_ms)

    @property
    def rate(self) -> float:
        """Frames a second, lately."""
        if len(self._lately) < 2:
            return 0.0
        return (len(self._lately) - 1) / max(1e-9, self._lately[-1] - self._lately[0])

    @property
    def news(self) -> str:
        latency = f" · {self.latencies_ms[-1]:.0f} ms" if self.latencies_ms else ""
        return f"{self.rate:.1f} frames/s{latency} · {self.dropped} dropped"

    def figures(self, reconnects: int) -> dict[str, Any]:
        seconds = self._lately[-1] - self._began if self._lately else 0.0
        return {
            "frames": self.frames,
            "predictions": self.predictions,
            "frames_per_second": (self.frames - 1) / seconds if seconds else 0.0,
            "latency_ms": _spread(self.latencies_ms),
            "inference_ms": _spread(self.inferences_ms),
            "dropped": self.dropped,
            "reconnects": reconnects,
        }


def _spread(values: deque[float]) -> dict[str, float]:
    if not values:
        return {}
    return {"median": float(np.median(values)), "p90": float(np.quantile(values, 0.9))}
