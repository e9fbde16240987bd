"""A program that takes the dynamic linker's place and starts the program at hand under qemu.

An ordinary user can't tell the kernel to start programs by an emulator (binfmt_misc). But every
dynamic program names its linker (/lib64/ld-linux-x86-64.so.2), which the kernel loads with it and
starts. Where this file is bound over the linker, each program of a container, and each that it
starts, comes here: it asks /proc/self/exe which program it is, and becomes

    QEMU -cpu MODEL -L PREFIX -0 argv[0] PROGRAM argv[1]...

with qemu, a static program, bound into the container, and the real linker below PREFIX, where qemu
looks for it. Started as a program itself (as ldd does), it has no AT_BASE (7), and starts the real
linker. Static programs have no linker: they are not reached.

The code is written down in bytes since whoever runs a check need not have a compiler. A test
assembles the text beside them.
"""

from struct import Struct

CODE = """
48 89 e5              | mov rbp, rsp
4c 8b 65 00           | mov r12, [rbp]
4c 8d 6d 08           | lea r13, [rbp+8]
4f 8d 74 e5 08        | lea r14, [r13+r12*8+8]
4c 89 f7              | mov rdi, r14
48 8b 07              | 1: mov rax, [rdi]
48 83 c7 08           | add rdi, 8
48 85 c0              | test rax, rax
75 f4                 | jnz 1b
48 8b 07              | 2: mov rax, [rdi]
48 8b 4f 08           | mov rcx, [rdi+8]
48 83 c7 10           | add rdi, 16
48 83 f8 07           | cmp rax, 7
74 07                 | je 3f
48 85 c0              | test rax, rax
75 ea                 | jnz 2b
31 c9                 | xor ecx, ecx
4c 8d 3d 22 01 00 00  | 3: lea r15, [rip+real]
48 85 c9              | test rcx, rcx
74 29                 | jz 4f
48 81 ec 00 10 00 00  | sub rsp, 4096
b8 59 00 00 00        | mov eax, 89
48 8d 3d aa 00 00 00  | lea rdi, [rip+self]
48 89 e6              | mov rsi, rsp
ba ff 0f 00 00        | mov edx, 4095
0f 05                 | syscall
48 85 c0              | test rax, rax
78 5e                 | js 7f
c6 04 04 00           | mov byte ptr [rsp+rax], 0
49 89 e7              | mov r15, rsp
6a 00                 | 4: push 0
4c 89 e1              | mov rcx, r12
48 ff c9              | 5: dec rcx
7e 07                 | jle 6f
41 ff 74 cd 00        | push [r13+rcx*8]
eb f4                 | jmp 5b
41 57                 | 6: push r15
41 ff 75 00           | push [r13]
48 8d 05 86 00 00 00  | lea rax, [rip+zero]
50                    | push rax
48 8d 05 ae 00 00 00  | lea rax, [rip+prefix]
50                    | push rax
48 8d 05 7a 00 00 00  | lea rax, [rip+option]
50                    | push rax
48 8d 05 1e 01 00 00  | lea rax, [rip+model]
50                    | push rax
48 8d 05 6e 00 00 00  | lea rax, [rip+cpuo]
50                    | push rax
48 8d 05 6e 00 00 00  | lea rax, [rip+qemu]
50                    | push rax
48 89 c7              | mov rdi, rax
48 89 e6              | mov rsi, rsp
4c 89 f2              | mov rdx, r14
b8 3b 00 00 00        | mov eax, 59
0f 05                 | syscall
bf 7e 00 00 00        | 7: mov edi, 126
b8 e7 00 00 00        | mov eax, 231
0f 05                 | syscall
"""
"""Bytes, and what they are for the GNU assembler (Intel's syntax)."""
FIELDS = {
    "self": (0x100, b"/proc/self/exe"),
    "zero": (0x110, b"-0"),
    "option": (0x114, b"-L"),
    "cpuo": (0x118, b"-cpu"),
    "qemu": (0x120, b""),
    "prefix": (0x140, b""),
    "real": (0x160, b""),
    "model": (0x1C0, b""),
}
"""Label -> offset in the file behind its headers, and text."""
_SIZE = 0x600
_HEADER = Struct("<4s12sHHIQQQIHHHHHH")
_SEGMENT = Struct("<IIQQQQQQ")


def code() -> bytes:
    """Return the machine code."""
    return b"".join(bytes.fromhex(row.partition("|")[0]) for row in CODE.strip().splitlines())


def made(qemu: str, prefix: str, real: str, model: str) -> bytes:
    """Return the file: an ELF program that also is a dynamic linker. Raises ValueError.

    `qemu`, `prefix` and `real` are paths in the container, `model` is for qemu's option -cpu.
    """
    given = {"qemu": qemu, "prefix": prefix, "real": real, "model": model}
    body = bytearray(_SIZE)
    body[: len(code())] = code()
    ends = [*[at for at, _text in FIELDS.values()][1:], _SIZE]
    for (name, (at, text)), end in zip(FIELDS.items(), ends, strict=True):
        text = given[name].encode() if name in given else text
        if at + len(text) >= end or b"\0" in text:
            raise ValueError(f"{name} is too long: {text!r}")
        body[at : at + len(text)] = text
    begin = _HEADER.size + _SEGMENT.size
    size = begin + len(body)
    # ET_DYN, x86-64, one segment that may be read and executed and has all of the file.
    ident = b"\2\1\1" + bytes(9)
    header = _HEADER.pack(b"\x7fELF", ident, 3, 62, 1, begin, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + _SEGMENT.pack(1, 5, 0, 0, 0, size, size, 4096) + bytes(body)
