"""Functions of C libraries for the decompressors, by the extension module `_ctypes`.

The `ctypes` package in front of it costs the image server's start 4.5 ms of the 20 that the
launcher waits for; the names used here are those that `ctypes/__init__.py` itself builds on.
"""

import _ctypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Size(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """size_t, which is unsigned long in every Linux ABI."""

    _type_ = "L"


class Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """int"""

    _type_ = "i"


class Pointer(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """void *"""

    _type_ = "P"


class Text(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """const char *, from and to bytes"""

    _type_ = "z"


class _Object(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "O"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL
    _restype_ = Int


class _OfPython(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_PYTHONAPI
    _restype_ = _Object


def library(name: str) -> "Callable[..., Callable[..., Any]]":
    """Open a library, which stays; return a function (name, result type, *argument types).

    That returns the library's function. The GIL is released while one runs. Both raise OSError
    where there is none.
    """
    handle = _ctypes.dlopen(name, 0)

    def function(name: str, result: type, *arguments: type) -> "Callable[..., Any]":
        found: Any = _Function(_ctypes.dlsym(handle, name))
        found.restype, found.argtypes = result, arguments
        return found  # type: ignore[no-any-return]

    return function


def uninitialised() -> "Callable[[None, int], bytes]":
    """Return PyBytes_FromStringAndSize: with NULL it makes a bytes object that C may still fill."""
    handle = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]
    make: Any = _OfPython(_ctypes.dlsym(handle, "PyBytes_FromStringAndSize"))
    make.argtypes = (Pointer, Size)
    return make  # type: ignore[no-any-return]
