"""udi-run on a host whose GPUs are in a tree: gpurun.py ROOT REQUEST UDI-RUN-ARGUMENTS...

An ordinary user can't put a driver into /usr or a specification into /etc/cdi, so this plans the
GPUs of ROOT and hands the result to the launch as `--gpu=REQUEST` would. All else is udi-run.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from rootless_udi import run
from rootless_udi.launch import inject
from rootless_udi.mpi_inject.gpu import planner

root, request, *argv = sys.argv[1:]
gather = inject.gather


def with_gpu(request_, site, environ, image, host):  # type: ignore[no-untyped-def]
    injections, hooks = gather(request_, site, environ, image, host)
    return (*injections, planner.plan(request, (), image.facts, environ, root, host.machine)), hooks


inject.gather = with_gpu
run.main(argv)
