"""SFTP in a container, whatever its image has: version 3 of the protocol, as OpenSSH speaks it.

draft-ietf-secsh-filexfer-02, and the extensions in OpenSSH's file PROTOCOL. A session enters the
container with this module loaded and imports nothing there. Paths are bytes. What a client sends is
bounded: the length of a packet, the number of open handles.
"""

import os
import stat
import time
from collections.abc import Callable, Iterator
from errno import EACCES, EEXIST, ENOENT, EPERM

from rootless_udi.ssh.wire import Attributes, Packet, Short, attributes, text, u32, u64

_PACKET = 1 << 18
"""Bytes of the longest packet that is taken, and of the longest answer."""
_DATA = _PACKET - 1024
_HANDLES = 256
_NAMES = 100
"""Names in one answer."""
_OK, _EOF, _NO_FILE, _DENIED, _FAILURE, _BAD, _UNSUPPORTED = 0, 1, 2, 3, 4, 5, 8
_SAID = {_OK: b"Success", _EOF: b"End of file", _BAD: b"Bad message", _UNSUPPORTED: b"Unsupported"}
_STATUS, _HANDLE, _NAME, _ATTRS, _REPLY = 101, 102, 104, 105, 201
_DATA_IS = 103
_READ, _WRITE, _APPEND, _CREAT, _TRUNC, _EXCL = 1, 2, 4, 8, 16, 32
_EXTENSIONS = (
    *((b"posix-rename@openssh.com", b"1"), (b"statvfs@openssh.com", b"2")),
    *((b"fstatvfs@openssh.com", b"2"), (b"hardlink@openssh.com", b"1")),
    *((b"fsync@openssh.com", b"1"), (b"lsetstat@openssh.com", b"1")),
    *((b"limits@openssh.com", b"1"), (b"expand-path@openssh.com", b"1")),
)
Entries = Iterator[bytes]


class SftpServer:
    """One session: `read` and `write` are the client's descriptors, `home` what "~" stands for."""

    def __init__(self, read: int, write: int, home: bytes) -> None:
        self.read, self.write, self.home = read, write, home
        self.handles: dict[bytes, int | tuple[bytes, Entries]] = {}
        self.count = 0
        self.buffer = bytearray()
        named = (
            *(self._open, self._close, self._read, self._write, self._lstat, self._fstat),
            *(self._setstat, self._fsetstat, self._opendir, self._readdir, self._remove),
            *(self._mkdir, self._rmdir, self._realpath, self._stat, self._rename),
            *(self._readlink, self._symlink),
        )
        # SSH_FXP_OPEN is 3, SSH_FXP_SYMLINK 20, SSH_FXP_EXTENDED 200.
        self.calls: dict[int, Callable[[Packet], bytes]] = dict(enumerate(named, 3))
        self.calls[200] = self._extended

    def run(self) -> int:
        """Answer until the client ends; return the exit status, 1 for what is no SFTP."""
        while (packet := self._packet()) is not None:
            if len(packet) < 5:
                return 1
            kind, rest = packet[0], Packet(packet[1:])
            if kind == 1:
                offered = b"".join(text(word) for pair in _EXTENSIONS for word in pair)
                self._send(b"\2" + u32(3) + offered)
                continue
            number = u32(rest.u32())
            try:
                answer = self.calls[kind](rest)
            except KeyError:
                answer = _status(_UNSUPPORTED)
            except (Short, ValueError):
                answer = _status(_BAD)
            except OSError as error:
                answer = _failed(error)
            self._send(answer[:1] + number + answer[1:])
        return 1 if self.buffer else 0

    def _packet(self) -> bytes | None:
        """Return the next packet; None at the end, and for one that is too long."""
        head = self._bytes(4)
        length = int.from_bytes(head or b"\0", "big")
        return self._bytes(length) if head is not None and length <= _PACKET else None

    def _bytes(self, count: int) -> bytes | None:
        while len(self.buffer) < count:
            data = os.read(self.read, _PACKET)
            if not data:
                return None
            self.buffer += data
        found = bytes(self.buffer[:count])
        del self.buffer[:count]
        return found

    def _send(self, packet: bytes) -> None:
        left = memoryview(u32(len(packet)) + packet)
        while left:
            left = left[os.write(self.write, left) :]

    # Handles

    def _keep(self, what: int | tuple[bytes, Entries]) -> bytes:
        self.count += 1
        name = b"%d" % self.count
        self.handles[name] = what
        return bytes((_HANDLE,)) + text(name)

    def _file(self, packet: Packet) -> int:
        found = self.handles.get(packet.text())
        if not isinstance(found, int):
            raise ValueError("no such handle")
        return found

    def _room(self) -> None:
        if len(self.handles) >= _HANDLES:
            raise OSError(0, "too many open handles")

    def _open(self, packet: Packet) -> bytes:
        path, flags, wanted = packet.path(), packet.u32(), packet.attributes()
        self._room()
        mode = os.O_RDWR if flags & _READ and flags & _WRITE else os.O_RDONLY
        if flags & _WRITE and not flags & _READ:
            mode = os.O_WRONLY
        for flag, name in (
            *((_APPEND, os.O_APPEND), (_CREAT, os.O_CREAT)),
            *((_TRUNC, os.O_TRUNC), (_EXCL, os.O_EXCL)),
        ):
            mode |= name if flags & flag else 0
        permissions = 0o666 if wanted.mode is None else wanted.mode & 0o7777
        return self._keep(os.open(path, mode | os.O_CLOEXEC | os.O_NOCTTY, permissions))

    def _close(self, packet: Packet) -> bytes:
        found = self.handles.pop(packet.text(), None)
        if found is None:
            raise ValueError("no such handle")
        if isinstance(found, int):
            os.close(found)
        return _status(_OK)

    def _read(self, packet: Packet) -> bytes:
        fd, offset, length = self._file(packet), packet.u64(), packet.u32()
        data = os.pread(fd, min(length, _DATA), min(offset, (1 << 63) - 1))
        return bytes((_DATA_IS,)) + text(data) if data else _status(_EOF)

    def _write(self, packet: Packet) -> bytes:
        fd, offset, data = self._file(packet), packet.u64(), packet.text()
        left = memoryview(data)
        while left:
            count = os.pwrite(fd, left, offset)
            left, offset = left[count:], offset + count
        return _status(_OK)

    def _opendir(self, packet: Packet) -> bytes:
        path = packet.path()
        self._room()
        names = os.listdir(path)
        return self._keep((path, iter([b".", b"..", *names])))

    def _readdir(self, packet: Packet) -> bytes:
        found = self.handles.get(packet.text())
        if not isinstance(found, tuple):
            raise ValueError("no such handle")
        path, entries = found
        rows, size = [], 0
        for name in entries:
            try:
                status = os.lstat(os.path.join(path, name))
            except OSError:
                # It has just been removed.
                continue
            rows.append(text(name) + text(_line(name, status)) + attributes(status))
            size += len(rows[-1])
            if len(rows) == _NAMES or size > _DATA // 2:
                break
        return _names(rows) if rows else _status(_EOF)

    # Attributes

    def _lstat(self, packet: Packet) -> bytes:
        return bytes((_ATTRS,)) + attributes(os.lstat(packet.path()))

    def _stat(self, packet: Packet) -> bytes:
        return bytes((_ATTRS,)) + attributes(os.stat(packet.path()))

    def _fstat(self, packet: Packet) -> bytes:
        return bytes((_ATTRS,)) + attributes(os.fstat(self._file(packet)))

    def _setstat(self, packet: Packet) -> bytes:
        return _change(packet.path(), packet.attributes())

    def _fsetstat(self, packet: Packet) -> bytes:
        return _change(self._file(packet), packet.attributes())

    # Names

    def _remove(self, packet: Packet) -> bytes:
        os.unlink(packet.path())
        return _status(_OK)

    def _mkdir(self, packet: Packet) -> bytes:
        path, wanted = packet.path(), packet.attributes()
        os.mkdir(path, 0o777 if wanted.mode is None else wanted.mode & 0o7777)
        return _status(_OK)

    def _rmdir(self, packet: Packet) -> bytes:
        os.rmdir(packet.path())
        return _status(_OK)

    def _realpath(self, packet: Packet) -> bytes:
        return _name(os.path.realpath(packet.path()))

    def _rename(self, packet: Packet) -> bytes:
        old, new = packet.path(), packet.path()
        if os.path.lexists(new):
            # Version 3 of the protocol replaces nothing; posix-rename does.
            raise OSError(EEXIST, os.strerror(EEXIST))
        os.rename(old, new)
        return _status(_OK)

    def _readlink(self, packet: Packet) -> bytes:
        return _name(os.readlink(packet.path()))

    def _symlink(self, packet: Packet) -> bytes:
        # OpenSSH has the target first, against the draft; so has everybody since.
        target, place = packet.path(), packet.path()
        os.symlink(target, place)
        return _status(_OK)

    def _extended(self, packet: Packet) -> bytes:
        name = packet.text()
        if name == b"posix-rename@openssh.com":
            os.rename(packet.path(), packet.path())
        elif name == b"hardlink@openssh.com":
            os.link(packet.path(), packet.path(), follow_symlinks=False)
        elif name == b"fsync@openssh.com":
            os.fsync(self._file(packet))
        elif name == b"lsetstat@openssh.com":
            return _change(packet.path(), packet.attributes(), follow=False)
        elif name == b"statvfs@openssh.com":
            return _filesystem(os.statvfs(packet.path()))
        elif name == b"fstatvfs@openssh.com":
            return _filesystem(os.fstatvfs(self._file(packet)))
        elif name == b"limits@openssh.com":
            return bytes((_REPLY,)) + b"".join(map(u64, (_PACKET, _DATA, _DATA, _HANDLES)))
        elif name == b"expand-path@openssh.com":
            path = packet.text()
            if path == b"~" or path.startswith(b"~/"):
                path = self.home + path[1:]
            return _name(os.path.realpath(path or b"."))
        else:
            return _status(_UNSUPPORTED)
        return _status(_OK)


def _change(what: bytes | int, wanted: Attributes, follow: bool = True) -> bytes:
    """Do what SETSTAT asks, in OpenSSH's order. Raises OSError."""
    if wanted.size is not None:
        os.truncate(what, wanted.size)
    if wanted.mode is not None and follow:
        # Links have no permissions of their own.
        os.chmod(what, wanted.mode & 0o7777)
    if wanted.times is not None:
        os.utime(what, wanted.times, follow_symlinks=follow)
    if wanted.owner is not None:
        os.chown(what, *wanted.owner, follow_symlinks=follow)
    return _status(_OK)


def _line(name: bytes, status: os.stat_result) -> bytes:
    """Return the entry as `ls -l` has it, with ids for names."""
    near = abs(time.time() - status.st_mtime) < 182 * 86400
    try:
        when = time.strftime(
            "%b %e %H:%M" if near else "%b %e  %Y", time.localtime(status.st_mtime)
        )
    except (OSError, OverflowError, ValueError):
        when = "?"
    head = f"{stat.filemode(status.st_mode)} {status.st_nlink:>4} {status.st_uid:<8} "
    return f"{head}{status.st_gid:<8} {status.st_size:>8} {when} ".encode() + name


def _names(rows: list[bytes]) -> bytes:
    return bytes((_NAME,)) + u32(len(rows)) + b"".join(rows)


def _name(path: bytes) -> bytes:
    return _names([text(path) + text(path) + u32(0)])


def _filesystem(found: os.statvfs_result) -> bytes:
    flags = (1 if found.f_flag & os.ST_RDONLY else 0) | (2 if found.f_flag & os.ST_NOSUID else 0)
    numbers = (
        *(found.f_bsize, found.f_frsize, found.f_blocks, found.f_bfree, found.f_bavail),
        *(found.f_files, found.f_ffree, found.f_favail, found.f_fsid, flags, found.f_namemax),
    )
    return bytes((_REPLY,)) + b"".join(map(u64, numbers))


def _status(code: int, why: bytes = b"") -> bytes:
    return bytes((_STATUS,)) + u32(code) + text(why or _SAID.get(code, b"Failure")) + text(b"")


def _failed(error: OSError) -> bytes:
    code = {ENOENT: _NO_FILE, EACCES: _DENIED, EPERM: _DENIED}.get(error.errno or 0, _FAILURE)
    return _status(code, (error.strerror or str(error)).encode())
