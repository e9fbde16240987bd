"""Put a squashfs file that a user made into the site's store: what a worker does for `doimport`.

The gateway's account can read what the asker can't: its database, private images. So the file must
be the asker's own, of whatever name or link, as the kernel says of the file that was opened.
"""

import hashlib
import os
import stat
from collections.abc import Callable
from typing import Any

from rootless_udi.base.errors import UdiError, amount
from rootless_udi.plan.reference import platform_of_key
from rootless_udi.store import adding, inside, resolve
from rootless_udi.store.store import Store, discard

HOST = "import.local"
"""The registry's place in the names of imported images: HOST/USER/NAME:TAG."""
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def opened(path: str, uid: int, most: int) -> tuple[int, os.stat_result]:
    """Return a descriptor of the file that `uid` may import, and what it is. Raises UdiError."""
    try:
        fd = os.open(path, _OPEN)
    except OSError as error:
        raise UdiError(
            f"opening {path} failed: {error.strerror}",
            "the gateway's account must be able to read it: chmod a+r, and a+x its folders",
        ) from None
    status = os.fstat(fd)
    why = ""
    if not stat.S_ISREG(status.st_mode):
        why = "it is no regular file"
    elif status.st_uid != uid:
        why = "it is not yours"
    elif status.st_size > most:
        why = f"it has {amount(status.st_size)}, and the site takes {amount(most)} at most"
    if why:
        os.close(fd)
        raise UdiError(f"importing {path} failed: {why}", "copy it to a file of your own")
    return fd, status


def version(path: str, uid: int, most: int) -> str:
    """Return what tells the file's content of now from a later one. Raises UdiError."""
    fd, status = opened(path, uid, most)
    os.close(fd)
    text = f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}"
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def do(order: dict[str, Any], store: Store, tell: Callable[[int, int], None]) -> str:
    """Do a worker's `order`; return the image's digest. `tell` gets (done, of all) bytes.

    The digest is that of the file without what `udi export` adds, as `udi import` has it.
    """
    path = str(order["file"])
    fd, status = opened(path, int(order["uid"]), int(order["most"]))
    try:
        image = resolve.local(path, f"/proc/self/fd/{fd}")
        _check_platform(image.facts, str(order["platform"]), path)
        summed = hashlib.sha256()
        for data in inside.original(fd):
            summed.update(data)
        digest = f"sha256:{summed.hexdigest()}"
        lock = store.lock(digest)
        lock.wait()
        try:
            if store.image(digest) is None:
                facts = {"version": 1, **image.facts, "reference": order["name"], "digest": digest}
                facts["imported"] = {"digest": image.digest, "uid": order["uid"]}
                _copy(fd, path, store, digest, facts, lambda done: tell(done, status.st_size))
        finally:
            lock.release()
        return digest
    finally:
        os.close(fd)


def _copy(
    fd: int,
    path: str,
    store: Store,
    digest: str,
    facts: dict[str, Any],
    tell: Callable[[int], None],
) -> None:
    target = store.temporary("images", digest)
    summed, done = hashlib.sha256(), 0
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(target, flags, 0o600), "wb") as out:

            def write(data: bytes) -> None:
                nonlocal done
                out.write(data)
                done += len(data)
                tell(done)

            listed = inside.copy(fd, path, {}, write, summed.update)
        if f"sha256:{summed.hexdigest()}" != digest:
            raise UdiError(f"importing {path} failed: it changed meanwhile", "import it again")
        adding.add(store, digest, target, facts, listed)
    except OSError as error:
        raise store.refused(f"importing {path}", error) from None
    finally:
        discard(target)


def _check_platform(facts: dict[str, Any], key: str, path: str) -> None:
    said, wanted = str(facts.get("architecture") or ""), platform_of_key(key)
    if said and said != wanted.architecture:
        raise UdiError(
            f"importing {path} failed: it is for {said}", f'"platform": "linux/{said}" says so'
        )
