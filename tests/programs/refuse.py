"""refuse NUMBER:ERRNO[,...] COMMAND...: run a command to which system calls are refused.

By a seccomp filter (seccomp(2)), as container managers and systemd units do it.
"""

import ctypes
import os
import struct
import sys

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
PR_SET_NO_NEW_PRIVS = 38
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000


def main() -> None:
    program = [struct.pack("HBBI", LOAD, 0, 0, 0)]  # the number is first in struct seccomp_data
    for pair in sys.argv[1].split(","):
        number, errno = map(int, pair.split(":"))
        program.append(struct.pack("HBBI", JUMP_IF_EQUAL, 0, 1, number))
        program.append(struct.pack("HBBI", RETURN, 0, 0, ERRNO | errno))
    program.append(struct.pack("HBBI", RETURN, 0, 0, ALLOW))
    code = ctypes.create_string_buffer(b"".join(program))
    whole = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, whole),
    ):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")
    os.execvp(sys.argv[2], sys.argv[2:])


main()
