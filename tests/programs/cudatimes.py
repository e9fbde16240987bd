"""Time a matrix product and a host-to-device copy with torch or cupy; print JSON, in seconds.

Each figure is the median of 5, after a warm-up, by the device's own clock (CUDA events).
"""

import json
import statistics

SIZE = 8192
BYTES = 1 << 30


def by_torch() -> dict[str, object]:
    """Measure with torch; raises ImportError where it is missing."""
    import torch

    def clock(action: object) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        action()  # type: ignore[operator]
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3  # type: ignore[no-any-return]

    one = torch.randn(SIZE, SIZE, device="cuda", dtype=torch.float16)
    source = torch.empty(BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(BYTES, dtype=torch.uint8, device="cuda")
    return measure("torch", clock, lambda: one @ one, lambda: target.copy_(source))


def by_cupy() -> dict[str, object]:
    """Measure with cupy; raises ImportError where it is missing."""
    import cupy
    import numpy

    def clock(action: object) -> float:
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        action()  # type: ignore[operator]
        end.record()
        end.synchronize()
        return cupy.cuda.get_elapsed_time(start, end) / 1e3  # type: ignore[no-any-return]

    one = cupy.random.rand(SIZE, SIZE, dtype=cupy.float32)
    memory = cupy.cuda.alloc_pinned_memory(BYTES)
    source = numpy.frombuffer(memory, numpy.uint8, BYTES)
    target = cupy.empty(BYTES, dtype=cupy.uint8)
    return measure("cupy", clock, lambda: one @ one, lambda: target.set(source))


def measure(library: str, clock: object, product: object, copy: object) -> dict[str, object]:
    """Return the medians."""
    found: dict[str, object] = {"library": library}
    for name, action in (("product", product), ("copy", copy)):
        times = [clock(action) for _ in range(8)]  # type: ignore[operator]
        found[name] = statistics.median(times[3:])
    return found


try:
    result = by_torch()
except ImportError:
    result = by_cupy()
print(json.dumps(result))
