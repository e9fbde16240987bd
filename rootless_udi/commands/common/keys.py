"""The private key that a command is given."""

import os
import sys

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootless_udi.pull.signature import PrivateKey


def private_key(path: str) -> "PrivateKey":
    """Return the key in a file; its password is in $COSIGN_PASSWORD, or a terminal is asked.

    Raises UdiError.
    """
    from rootless_udi.pull.signature import PrivateKey

    try:
        pem = trust.read(path, what="the key")
    except OSError as error:
        raise UdiError(f"reading key {path} failed: {error.strerror}") from None
    password = os.environ.get("COSIGN_PASSWORD", "")
    if not password and b"ENCRYPTED" in pem and sys.stdin.isatty():
        from getpass import getpass

        password = getpass(f"Password of {path}: ")
    return PrivateKey(pem, password, path)
