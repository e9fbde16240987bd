"""What the checks need to know of an image: gathered once, and kept with the image's facts."""

from rootless_udi.forecast.gpucode import GpuCode
from rootless_udi.forecast.needs import Gatherer

GATHERERS: tuple[type[Gatherer], ...] = (GpuCode,)
"""Each is shown all of an image once; `needs` says how."""
