"""The names of glibc's files and of its dynamic linker; shared by the pull and the launch."""

LOADERS = {
    "x86_64": "/lib64/ld-linux-x86-64.so.2",
    "aarch64": "/lib/ld-linux-aarch64.so.1",
    "ppc64": "/lib64/ld64.so.2",
    "s390x": "/lib/ld64.so.1",
    "riscv64": "/lib/ld-linux-riscv64-lp64d.so.1",
    "arm": "/lib/ld-linux-armhf.so.3",
    "i386": "/lib/ld-linux.so.2",
}
"""Machine -> its dynamic linker, which programs name in PT_INTERP (glibc wiki, ABIList)."""

MOST = 200
"""Most copies of glibc's files, and most programs with another ld.so, that a pull notes."""

LDD = ("/usr/bin/ldd", "/bin/ldd")
"""Where ldd(1) may be: a script, which must fit ld.so (Debian 11's fails with ld.so of 2.36)."""

REQUIRED = (
    "libc.so.6",
    "libdl.so.2",
    "libm.so.6",
    "libpthread.so.0",
    "libresolv.so.2",
    "librt.so.1",
    "libutil.so.1",
)
"""Files of glibc that programs may need. A host must have all of them that the image has."""

OPTIONAL = (
    "libBrokenLocale.so.1",
    "libanl.so.1",
    "libc_malloc_debug.so.0",
    "libmemusage.so",
    "libmvec.so.1",
    "libnsl.so.1",
    "libnss_compat.so.2",
    "libnss_db.so.2",
    "libnss_dns.so.2",
    "libnss_files.so.2",
    "libnss_hesiod.so.2",
    "libpcprofile.so",
    "libthread_db.so.1",
)
"""Files of glibc that some distributions leave out or have in packages of their own."""


def names(machine: str) -> frozenset[str]:
    """Return the names of all files of glibc that a program of `machine` may load."""
    loader = LOADERS.get(machine, "").rpartition("/")[2]
    return frozenset((*REQUIRED, *OPTIONAL, loader)) - {""}
