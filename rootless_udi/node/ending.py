"""Remove the record of a node's container at its end, or note in it that its image server died.

Processes outside the container do that, long after the start, which doesn't load this module.
"""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.node import places
from rootless_udi.node.election import Election
from rootless_udi.node.publish import content, replace
from rootless_udi.node.record import NodeRecord, file_of, read_record
from rootless_udi.node.sweep import remove_files, sweep


def end(path: str, name: str, token: str, why: str = "") -> None:
    """Note in the record that its image server has died (`why`), or remove the record.

    The helper calls this. A record with another token is that of a newer container: it stays. The
    token has the builder's process id and start time.
    """
    try:
        _, directory = places.state([path], make=False)
        if directory < 0:
            return
        election = Election(path, directory, name)
    except UdiError:
        return
    try:
        record, fd = read_record(directory, name)
        if fd >= 0:
            os.close(fd)
        if record is not None and record.get("token") != token:
            return
        if record is not None and why:
            _mark(directory, path, name, record, why)
        elif not why:
            remove_files(directory, name)
    finally:
        election.give_up()
        if not why:
            pid, _, start = token.partition(".")
            sweep(directory, (int(pid), int(start)))
        os.close(directory)


def _mark(directory: int, path: str, name: str, record: NodeRecord, why: str) -> None:
    head = [(key, value) for key, values in record.lists.items() for value in values]
    members = b"".join(b"%d %d\n" % pair for pair in reversed([*record.newest()]))
    try:
        replace(directory, path, name, content([*head, ("dead", why)], members))
    except UdiError:
        # It can't be noted: without the record nobody joins a container that has no server.
        os.unlink(file_of(name), dir_fd=directory)
