"""Run the steps of /steps.json one by one and say on the console what each did."""

import json
import os
import subprocess
import sys

USER = 1500
HOME = "/home/u"


def become_user() -> None:
    os.setgroups([])
    os.setgid(USER)
    os.setuid(USER)


def run(argv: list[str], user: bool, env: dict[str, str], seconds: int) -> tuple[int, str, str]:
    given = {
        "PATH": "/opt/udi/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
    }
    if user:
        given |= {"HOME": HOME, "USER": "u", "UDI_STORE": f"{HOME}/store"}
    try:
        done = subprocess.run(
            argv,
            env={**given, **env},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            preexec_fn=become_user if user else None,
        )
    except subprocess.TimeoutExpired as error:
        return 124, _text(error.stdout), _text(error.stderr) + f"\n(killed after {seconds} s)"
    except OSError as error:
        return 127, "", str(error)
    return done.returncode, _text(done.stdout), _text(done.stderr)


def _text(data: bytes | None) -> str:
    return (data or b"").decode(errors="replace")[-20000:]


def main() -> None:
    os.chmod("/home/u", 0o755)
    with open("/steps.json") as file:
        steps = json.load(file)
    for name, argv, user, env, seconds in steps:
        row = [name, *run(argv, user, env, seconds)]
        sys.stdout.write("\n@@done " + json.dumps(row) + "\n")
        sys.stdout.flush()


main()
