"""abortfuse.py UID TRIES ARGV...: abort the FUSE connection of each start as soon as it is there.

Root, in a mount namespace of its own where fusectl is mounted. Prints how many connections were
aborted; ends with 1 where a start has not ended after 30 s.
"""

import os
import subprocess
import sys

CONNECTIONS = "/sys/fs/fuse/connections"


def mine(uid: int) -> list[str]:
    try:
        names = os.listdir(CONNECTIONS)
        return [name for name in names if os.stat(f"{CONNECTIONS}/{name}").st_uid == uid]
    except OSError:
        return []


def main() -> None:
    uid, tries, argv = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    before, aborted = set(mine(uid)), 0
    for number in range(tries):
        environ = {**os.environ, "SLURM_JOB_ID": "1", "SLURM_STEP_ID": str(number)}
        start = subprocess.Popen(argv, env=environ, stderr=subprocess.DEVNULL)
        hit = False
        while start.poll() is None and not hit:
            for name in set(mine(uid)) - before:
                try:
                    with open(f"{CONNECTIONS}/{name}/abort", "w") as file:
                        file.write("1")
                    hit = True
                except OSError:
                    continue
        try:
            start.wait(30)
        except subprocess.TimeoutExpired:
            start.kill()
            sys.exit(1)
        aborted += hit
    print(aborted)


main()
