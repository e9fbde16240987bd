"""Which instructions a command needs: it is run as on the site's CPU."""

import os
import subprocess
from pathlib import Path
from typing import Any

import archspec.cpu
import pytest

from rootless_udi.forecast import isa, isa_models, isa_process, isa_qemu, isa_shim
from rootless_udi.forecast.asked import Asked
from rootless_udi.forecast.finding import FAILS, RUNS, UNKNOWN, UNLOOKED, CheckFinding
from rootless_udi.forecast.isa_signs import IsaSigns
from rootless_udi.forecast.needs import ImageEntry
from rootless_udi.forecast.site import Capture
from rootless_udi.plan.options import Request
from tests.conftest import User
from tests.kit.gpuimages import needed

PROGRAM = """
float a[1024], b[1024];
int main(int argc, char **argv) {
    for (int i = 0; i < 1000 + argc; i++) a[i] = a[i] * 3 + b[i];
    return a[argc] != 0;
}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a root with a shell and a program for each level of x86-64."""
    root = tmp_path_factory.mktemp("isa") / "root"
    (root / "bin").mkdir(parents=True)
    source = root.parent / "a.c"
    source.write_text(PROGRAM)
    for level in ("v2", "v3", "v4"):
        for name, more in ((level, []), (f"static-{level}", ["-static"])):
            argv: list[str | Path] = ["gcc", "-O3", f"-march=x86-64-{level}", *more, source]
            subprocess.run([*argv, "-o", root / "bin" / name], check=True)
    for name in ("sh", "sleep", "cat"):
        (root / "bin" / name).write_bytes(Path(f"/bin/{name}").resolve().read_bytes())
    scripts = {
        "calls-v3": "#!/bin/sh\nv3\n",
        "fails": "#!/bin/sh\nread word || exit 7\n",
    }
    for name, text in scripts.items():
        (root / "bin" / name).write_text(text)
    for path in (root / "bin").iterdir():
        path.chmod(0o755)
    for library in needed(*(root / "bin").glob("s[hl]*"), root / "bin/cat", root / "bin/v2"):
        copy = root / library.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(Path(library).read_bytes())
        copy.chmod(0o755)
    return root


def looked(
    root: Path, cpu: dict[str, Any], *words: str, limit: float = 60, **facts: Any
) -> CheckFinding:
    """Return the finding for a command on a CPU."""
    request = Request(image=str(root), command=words, no_cwd=True)
    asked = Asked(str(root), str(root), request, {}, limit=limit)
    facts = {"env": ["PATH=/bin"], **facts}
    (one,) = isa.check(Capture("there", {"cpu": cpu} if cpu else {}), facts, asked)
    return one


RUN = pytest.mark.needs("userns", "gcc", "qemu-user", "busybox")


@RUN
@pytest.mark.parametrize(
    ("cpu", "words", "verdict", "says"),
    [
        ("zen3", ["v3"], RUNS, "with all dynamic programs that it starts"),
        ("zen3", ["static-v3"], RUNS, "under qemu as zen3"),
        ("zen3", ["calls-v3"], RUNS, "under qemu as zen3"),
        ("ivybridge", ["v3"], FAILS, "AVX, AVX2, FMA or BMI is used that ivybridge lacks"),
        ("ivybridge", ["calls-v3"], FAILS, "Illegal instruction"),
        ("ivybridge", ["v2"], RUNS, "under qemu as ivybridge"),
        ("zen3", ["v4"], FAILS, "AVX-512 is used that zen3 lacks"),
        ("zen4", ["v4"], UNKNOWN, "this qemu does not emulate"),
        ("zen3", ["fails"], UNKNOWN, "status 7 here"),
    ],
)
def test_command(root: Path, cpu: str, words: list[str], verdict: str, says: str) -> None:
    one = looked(root, {"name": cpu}, *words)
    assert (one.verdict, says in one.what) == (verdict, True), one.what
    if verdict == FAILS:
        assert one.image.fact.startswith("the instruction ")
        assert "-march=x86-64-v" in one.remedy
    assert one.site.fact == cpu


@RUN
def test_a_command_without_end(root: Path) -> None:
    one = looked(root, {"name": "zen3"}, "sleep", "600", limit=3)
    assert (one.verdict, "still running after 3 s" in one.what) == (UNKNOWN, True)


@RUN
def test_an_image_without_a_shell(root: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    (alone / "bin").mkdir(parents=True)
    for name in ("static-v3", "static-v4"):
        os.link(root / "bin" / name, alone / "bin" / name)
    assert looked(alone, {"name": "zen3"}, "static-v3").verdict == RUNS
    assert looked(alone, {"name": "zen3"}, "static-v4").verdict == FAILS


@RUN
def test_a_script_of_a_static_shell(root: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    (alone / "bin").mkdir(parents=True)
    (alone / "bin/sh").write_bytes(Path("/bin/busybox").read_bytes())
    for name, text in (("script", "#!/bin/sh -e\ntest $1 = x\n"), ("twice", "#!/bin/script\n")):
        (alone / "bin" / name).write_text(text)
    for path in (alone / "bin").iterdir():
        path.chmod(0o755)
    assert looked(alone, {"name": "zen3"}, "script", "x").verdict == RUNS
    assert "status 1 here" in looked(alone, {"name": "zen3"}, "script", "y").what
    assert "is a script for a static program" in looked(alone, {"name": "zen3"}, "twice").what


@RUN
def test_on_this_cpu_where_it_has_no_more(root: Path) -> None:
    flags = isa._here()[1]
    every = {"name": "zen3", "features": sorted(flags), "model": "another"}
    one = looked(root, every, "v2")
    assert (one.verdict, "on this CPU" in one.what) == (RUNS, True)
    assert not isa.stands_for(isa.Processor("x", (), frozenset({"sse2"}), "x86_64", "another"))


@RUN
def test_without_qemu(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    one = looked(root, {"name": "nehalem"}, "v2")
    assert (one.verdict, one.remedy) == (UNKNOWN, "install qemu-user-static")


@pytest.mark.needs("gcc")
@pytest.mark.parametrize(
    ("cpu", "words", "facts", "says"),
    [
        ({}, ["v2"], {}, "the capture names no x86-64 CPU"),
        ({"name": "power9le"}, ["v2"], {}, "the capture names no x86-64 CPU"),
        ({"name": 7, "features": 7, "model": []}, ["v2"], {}, "the capture names no x86-64 CPU"),
        ({"name": "zen3"}, ["v2"], {"elf": {"machine": "aarch64"}}, "an image for aarch64"),
        ({"name": "zen3"}, ["absent"], {}, "there is no such program"),
    ],
)
def test_what_can_t_be_tried(
    root: Path, cpu: dict[str, Any], words: list[str], facts: dict[str, Any], says: str
) -> None:
    one = looked(root, cpu, *words, **facts)
    assert (one.verdict, says in one.what) == (UNKNOWN, True), one.what


@RUN
def test_a_launch_that_is_refused_is_said(root: Path) -> None:
    request = Request(image=str(root), command=("v2",), volume=("/nowhere:/data",))
    asked = Asked(str(root), str(root), request, {})
    capture = Capture("there", {"cpu": {"name": "zen3", "features": sorted(isa._here()[1])}})
    (one,) = isa.check(capture, {"env": ["PATH=/bin"]}, asked)
    assert (one.verdict, "/nowhere" in one.what) == (UNKNOWN, True), one.what


@pytest.mark.needs("userns", "fuse", "qemu-user", "busybox")
def test_a_static_program_of_a_squashfs_image(user: User, box: Path) -> None:
    """The image is read to its end before it is closed: a file's content is read when asked for."""
    words = ("--site=perlmutter-like", "--all", "--", "sh", "-c", "true")
    done = user.run("udi", "check", box, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "under qemu as zen3" in " ".join(done.stdout.split())


@pytest.mark.needs("gcc")
def test_signs_without_a_command(root: Path) -> None:
    signs = IsaSigns()
    for path in ("/lib/libmkl_avx512.so.2", "/lib/libc.so.6", "/bin/gmx-znver3", "/doc/avx2.txt"):
        mode = 0o755 if path.startswith("/bin") else 0o644
        assert not signs.wants(ImageEntry(path, "file", mode, 0, 0, 9))
    assert signs.result() == {"names": ["/lib/libmkl_avx512.so.2", "/bin/gmx-znver3"]}
    one = looked(root, {"name": "zen3"}, forecast={"isa": signs.result()})
    assert (one.verdict, one.image.file) == (UNLOOKED, "/lib/libmkl_avx512.so.2")
    assert looked(root, {}).verdict == UNLOOKED


@pytest.mark.needs("gcc")
def test_the_shim_s_bytes_are_its_text(tmp_path: Path) -> None:
    rows = [row.partition("|")[2].strip() for row in isa_shim.CODE.strip().splitlines()]
    fields = [
        f'.org {at}\n{name}: .asciz "{text.decode()}"'
        for name, (at, text) in isa_shim.FIELDS.items()
    ]
    source = tmp_path / "a.s"
    source.write_text("\n".join([".intel_syntax noprefix", *rows, *fields, ""]))
    subprocess.run(["as", source, "-o", tmp_path / "a.o"], check=True)
    subprocess.run(
        ["objcopy", "-O", "binary", "-j", ".text", tmp_path / "a.o", tmp_path / "a"], check=True
    )
    assert (tmp_path / "a").read_bytes().startswith(isa_shim.code())
    made = isa_shim.made("/q", "/p", "/p/ld", "qemu64")
    assert made[120:].startswith(isa_shim.code())
    with pytest.raises(ValueError, match="model is too long"):
        isa_shim.made("/q", "/p", "/p/ld", "x" * 2000)


@pytest.mark.needs("qemu-user")
def test_the_model_is_one_of_the_qemu_that_is_there() -> None:
    """7.2 has no model of zen4 and takes its ancestor's, 10.0 has; AVX-512 has neither."""
    qemu = isa_qemu.InstalledQemu(isa_qemu.found())
    said = subprocess.run([qemu.path, "-cpu", "help"], capture_output=True, text=True).stdout
    models = {word for line in said.splitlines() for word in line.split()[:2]}
    cpu = archspec.cpu.TARGETS["zen4"]
    names = (cpu.name, *(one.name for one in cpu.ancestors))
    found = isa_models.choose(names, cpu.features, qemu)
    assert found
    assert found.name == next(n for n in names if isa_models.MODELS.get(n) in models)
    assert found.cpu.partition(",")[0] == isa_models.MODELS[found.name]
    assert "avx512f" in found.lacks and "avx2" not in found.lacks


class Fake:
    """A qemu that knows zen2, and of features sse3 (by another name) and sha."""

    def flags(self) -> frozenset[str]:
        return frozenset({"pni", "avx2", "sha-ni", "avx512f"})

    def missing(self, cpu: str) -> frozenset[str] | None:
        return frozenset({"avx512f", "sha-ni"}) if cpu.startswith("EPYC-Rome") else None


def test_the_nearest_ancestor_s_model_with_the_cpu_s_features() -> None:
    has = ["sse3", "avx2", "sha_ni", "avx512f", "gfni"]
    one = isa_models.choose(["zen4", "zen3", "zen2"], has, Fake())
    assert one is not None
    assert (one.name, one.cpu) == ("zen2", "EPYC-Rome,+avx2,+avx512f,+pni,+sha-ni")
    assert one.lacks == {"sha_ni", "avx512f", "gfni"}
    assert isa_models.choose(["nehalem"], has, Fake()) is None


@pytest.mark.parametrize(
    ("code", "has", "lacks", "need"),
    [
        ("62 f1 7c 48 58", ["avx512f"], ["avx512f"], "avx512f"),
        ("62 f1 7c 48 58", ["avx2"], ["rdseed"], ""),
        ("c4 e2 7d dc c0", ["vaes"], ["vaes"], "vaes"),
        ("c4 e2 7d 18 0d", ["sse2"], ["rdseed"], ""),
        ("48 0f c7 f8", ["rdseed"], ["rdseed"], "rdseed"),
        ("48 0f c7 64 24 08", ["xsavec"], ["rdseed", "xsavec"], "xsavec"),
        ("0f 01 fc", ["clzero"], ["clzero"], "clzero"),
        ("66 0f 38 cf c0", ["gfni"], ["gfni"], "gfni"),
        ("66 0f 3a 0b c0", ["sse2"], ["rdseed"], ""),
        ("", ["rdseed"], ["rdseed"], "rdseed"),
        ("", ["sse2"], [], ""),
    ],
)
def test_what_a_refused_instruction_may_need(
    code: str, has: list[str], lacks: list[str], need: str
) -> None:
    assert isa_models.needs(bytes.fromhex(code), has, lacks) == need


FEATURES = {
    "ssse3": ("-mssse3", "x = _mm_abs_epi8(x);"),
    "sse4_1": ("-msse4.1", "x = _mm_max_epi8(x, x);"),
    "sse4_2": ("-msse4.2", "v = _mm_crc32_u32(v, 3);"),
    "popcnt": ("-mpopcnt", "v = _mm_popcnt_u32(v);"),
    "aes": ("-maes", "x = _mm_aesenc_si128(x, x);"),
    "pclmulqdq": ("-mpclmul", "x = _mm_clmulepi64_si128(x, x, 0);"),
    "avx": ("-mavx", "__m256d y = _mm256_set1_pd(v); y = _mm256_add_pd(y, y); v = y[0];"),
    "f16c": ("-mf16c", "x = _mm_cvtps_ph(_mm_set1_ps(v), 0);"),
    "rdrand": ("-mrdrnd", "_rdrand32_step(&v);"),
    "avx2": ("-mavx2", "__m256i y = _mm256_set1_epi8(v); v = _mm256_add_epi8(y, y)[0];"),
    "fma": ("-mfma", "__m128d y = _mm_set1_pd(v); v = _mm_fmadd_pd(y, y, y)[0];"),
    "bmi1": ("-mbmi", 'asm volatile("andn %0, %0, %0" : "+r"(v));'),
    "bmi2": ("-mbmi2", "v = _pext_u32(v, 7);"),
    "adx": ("-madx", 'unsigned o = 0; asm volatile("adcx %1, %0" : "+r"(o) : "r"(v)); v = o;'),
    "fsgsbase": ("-mfsgsbase", "v = _readfsbase_u64();"),
    "avx512f": ("-mavx512f", "__m512d y = _mm512_set1_pd(v); v = _mm512_add_pd(y, y)[0];"),
    "cx16": ("-mcx16", 'static __int128 y; asm volatile("cmpxchg16b %0" : "+m"(y));'),
    "lahf_lm": ("-msahf", 'asm volatile("lahf" ::: "rax");'),
    "movbe": ("-mmovbe", 'asm volatile("movbe (%%rsp), %0" : "=r"(v));'),
}


@pytest.mark.slow
@pytest.mark.needs("gcc", "qemu-user")
@pytest.mark.parametrize("feature", FEATURES)
def test_what_qemu_refuses(tmp_path: Path, feature: str) -> None:
    flag, body = FEATURES[feature]
    text = (
        "#include <immintrin.h>\nint main(int c, char **a) { volatile unsigned n = c;"
        f" unsigned v = n; __m128i x = _mm_set1_epi8(v); {body} n = v + x[0]; return 0; }}\n"
    )
    (tmp_path / "a.c").write_text(text)
    argv: list[str | Path] = ["gcc", "-static", "-O1", flag, tmp_path / "a.c", "-o", tmp_path / "a"]
    subprocess.run(argv, check=True)
    cpu = "qemu64,-cx16,-lahf-lm"
    assert subprocess.run([isa_qemu.found(), "-cpu", cpu, tmp_path / "a"]).returncode == -4


def test_the_last_row_of_a_log() -> None:
    known = b"----\nIN: f\n0x01:  89 fe                    movl     %edi, %esi\n"
    long = known + b"0x02:  c4 e2 7d 18 0d 72 0f 00  vbroadcastss 0xf72(%rip), %ymm1\n0x0a:  00\n"
    unknown = known + b"0x02:  c4                       .byte    0xc4\n0x03:  e2 7d   loop\n"
    assert isa_process._last(known) == b"\x89\xfe"
    assert isa_process._last(long).hex() == "c4e27d180d720f0000"
    assert isa_process._last(unknown).hex() == "c4e27d"
    assert isa_process._last(b"0x1: zz\n") == isa_process._last(b"") == b""


NO_SHELL = """
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    static char many[1 << 16];
    if (argc < 2 || strcmp(argv[1], "-c")) return write(1, "done\\n", 5) != 5;
    memset(many, FILL, sizeof many);
    if (FILL == 'r') return write(9, "ready\\n\\377 7\\n", 11) != 11;
    if (FILL == '9') return write(9, "ready\\n", 6) + write(9, many, sizeof many) < 0;
    for (;;) if (write(FILL == 's' ? 2 : 9, many, sizeof many) < 0) return 1;
}
"""


@RUN
@pytest.mark.parametrize("fill", ["r", "9", "x", "\\n"])
def test_a_shell_that_is_none(fill: str, tmp_path: Path) -> None:
    """What the image has as /bin/sh says anything, or without end: the command is run without."""
    source, root = tmp_path / "a.c", tmp_path / "root"
    source.write_text(NO_SHELL)
    (root / "bin").mkdir(parents=True)
    argv: list[str | Path] = ["gcc", "-static", f"-DFILL='{fill}'", source, "-o", root / "bin/sh"]
    subprocess.run(argv, check=True)
    (root / "bin/app").write_bytes((root / "bin/sh").read_bytes())
    (root / "bin/app").chmod(0o755)
    assert looked(root, {"name": "zen3"}, "app", "run").verdict == RUNS


@RUN
def test_a_command_that_asks_for_a_terminal(root: Path) -> None:
    one = looked(root, {"name": "zen3"}, "sh", "-c", "read word </dev/tty")
    assert (one.verdict, "/dev/tty" in one.what) == (UNKNOWN, True), one.what
    assert looked(root, {"name": "zen3"}, "sh", "-c", "! read word; test ! -t 0").verdict == RUNS


@RUN
def test_a_command_that_says_much_and_leaves_processes(root: Path) -> None:
    """They end with it; of what it says the end is shown, without what a terminal obeys."""
    words = "sleep 600 & i=0; while [ $i -lt 20000 ]; do echo some words >&2; i=$((i + 1)); done;"
    words += r" printf '\033]0;evil\007\n' >&2; exit 3"
    one = looked(root, {"name": "zen3"}, "sh", "-c", words)
    assert (one.verdict, "status 3 here" in one.what) == (UNKNOWN, True), one.what
