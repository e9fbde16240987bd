"""abortfuse.py UID TRIES ARGV...: abort the FUSE connection of each start as soon as it is there.

Root, in a mount namespace of its own where fusectl is mounted. ARGV's standard input ends when it
has lost its connection. Prints how many were aborted; ends with 1 where a start goes on after that.
"""

import os
import subprocess
import sys

CONNECTIONS = "/sys/fs/fuse/connections"


def mine(uid: int) -> list[str]:
    found = []
    for name in os.listdir(CONNECTIONS):
        try:
            if os.stat(f"{CONNECTIONS}/{name}").st_uid == uid:
                found.append(name)
        except OSError:  # it has just ended
            continue
    return found


def main() -> None:
    uid, tries, argv = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    before, aborted = set(mine(uid)), 0
    for number in range(tries):
        environ = {**os.environ, "SLURM_JOB_ID": "1", "SLURM_STEP_ID": str(number)}
        start = subprocess.Popen(argv, env=environ, stdin=-1, stderr=subprocess.DEVNULL)
        assert start.stdin
        hit = False
        while start.poll() is None and not hit:
            for name in set(mine(uid)) - before:
                try:
                    with open(f"{CONNECTIONS}/{name}/abort", "w") as file:
                        file.write("1")
                    hit = True
                except OSError:
                    continue
        start.stdin.close()
        try:
            start.wait(120)
        except subprocess.TimeoutExpired:
            start.kill()
            sys.exit(1)
        aborted += hit
    print(aborted)


main()
