"""A cold start from a slow file system: 1 ms is added to every read of the image file.

    python3 -m bench.fuse_slow IMAGE [OTHER-IMAGE ...] [--optimize] [--rounds=N] [--ms=N]

A shim (LD_PRELOAD, compiled here) delays pread(2) and preadv(2) of regular files in the server, as
a parallel file system's round trip does: whatever the size. The same for our server and for
squashfuse_ll, on each image given and on the first one as `udi optimize` lays it out. The overlay
is on top, as a launch has it for our server.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.fuse_cold import optimised
from tests.kit.fusemount import Mount, ours, squashfuse

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
static void late(void) {
    struct timespec t = {0, atol(getenv("UDI_LATE_US")) * 1000L};
    nanosleep(&t, 0);
}
#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name); late()
ssize_t pread(int fd, void *b, size_t n, off_t at) { REAL(pread); return real(fd, b, n, at); }
ssize_t pread64(int fd, void *b, size_t n, off64_t at) { REAL(pread64); return real(fd, b, n, at); }
ssize_t preadv(int fd, const struct iovec *v, int n, off_t at) {
    REAL(preadv); return real(fd, v, n, at);
}
"""


def start(server: list[str], image: str, folder: Path, late: dict[str, str], over: bool) -> float:
    """Return the seconds of `import numpy` on a fresh mount."""
    with Mount(server, Path(image), folder / "m", overlay=over, env=late) as one:
        before = time.perf_counter()
        done = one.run(
            *("unshare", "--user", "--map-root-user", "--root", one.point),
            *("/usr/bin/python3", "-c", "import numpy"),
        )
        assert done.returncode == 0, done.stderr
        return time.perf_counter() - before


def main(argv: list[str]) -> None:
    """Run the benchmark."""
    option = dict(w[2:].split("=") for w in argv if w.startswith("--") and "=" in w)
    images = [w for w in argv if not w.startswith("--")]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        if "--optimize" in argv:
            images.append(optimised(images[0], folder))
        (folder / "late.c").write_text(SHIM)
        compiler: list[str | Path] = [
            "gcc",
            "-O1",
            "-shared",
            "-fPIC",
            "-o",
            folder / "late.so",
            folder / "late.c",
        ]
        subprocess.run(compiler, check=True)
        late = {
            "LD_PRELOAD": str(folder / "late.so"),
            "UDI_LATE_US": str(int(float(option.get("ms", "1")) * 1000)),
        }
        cases = {f"ours {Path(i).name}": (ours(), i, True) for i in images}
        if shutil.which("squashfuse_ll"):
            for image in images:
                key = f"squashfuse_ll {Path(image).name}"
                cases[key] = (squashfuse(), image, False)
        times: dict[str, list[float]] = {case: [] for case in cases}
        for round_ in range(int(option.get("rounds", "5")) + 1):
            for case, (server, image, over) in cases.items():
                taken = start(server, image, folder, late, over)
                if round_:
                    times[case].append(taken)
        base = f"squashfuse_ll {Path(images[0]).name}"
        for case, found in times.items():
            ratios = [a / b for a, b in zip(found, times.get(base, found), strict=True)]
            print(
                f"{case:32} {statistics.median(found) * 1000:8.0f} ms"
                f"   {statistics.median(ratios):5.2f} of {base}"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
