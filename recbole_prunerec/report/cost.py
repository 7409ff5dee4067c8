"""What a piece of work costs: floating-point operations, seconds, peak memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psutil
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

SAMPLING_SECONDS = 0.01


def count_flops(function: Callable[[], object]) -> int:
    """Floating-point operations of one call: 2 m n k for each matrix product (attention's two included, over the full square), others not counted.

    Attention runs by its plain products meanwhile: torch's counter does not know the fused CPU kernel and would count 0 for it, and so the figure is
    the same on every device.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


class Stopwatch:
    """`with Stopwatch(device) as watch: ...`, then `watch.seconds`: wall-clock time, with the GPU's queue emptied before and after."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device, self.seconds = torch.device(device), 0.0

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def __enter__(self) -> Stopwatch:
        self._start = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = self._now() - self._start


class PeakMemory:
    """`with PeakMemory(device) as peak: ...`, then `peak.bytes`: the most memory held at any time in the block, what was held before it included.

    On CUDA: torch's allocated tensors, exact. On a CPU: the whole process's resident memory, sampled every 10 ms, so that shorter peaks can be
    missed; memory that was freed earlier but not given back to the system counts too.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device, self.bytes = torch.device(device), 0

    def _sample(self) -> None:
        self.bytes = max(self.bytes, self._process.memory_info().rss)

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLING_SECONDS):
            self._sample()

    def __enter__(self) -> PeakMemory:
        self.bytes = 0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._process, self._stop = psutil.Process(), threading.Event()
            self._sample()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
        else:
            self._stop.set()
            self._thread.join()
            self._sample()
