"""The encryption of saved conversations: files that nobody without the key can read, or change unnoticed.

A file is encrypted with AES-256-GCM in chunks, so that it takes little memory however long it is. Each file has a key of
its own, which HMAC-SHA256 makes of the router's and of bytes by chance in its head; each chunk has its number and whether
it is the last one in its nonce, so that none can be left out, repeated or put elsewhere, and the file's name is
authenticated with it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from attrs import define, field

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

CHUNK_BYTES: Final = 1 << 20
_TAG_BYTES: Final = 16
_MAGIC: Final = b"engine-router context 1\n"
_ID_BYTES: Final = 32
_SALT_BYTES: Final = 16
SALT: Final = "salt"
"""The name of the file with the folder's salt."""
_BINARY: Final = getattr(os, "O_BINARY", 0)  # Windows
# What scrypt costs whoever guesses keys: 32 MiB and some tenths of a second for each.
_COST: Final = {"n": 1 << 15, "r": 8, "p": 1, "maxmem": 64 << 20}

Checkpoint = Callable[[], object]
"""Called between chunks; what it raises ends the work."""


class NotSealed(Exception):
    """A file is not what was encrypted with the key: another key, a shorter file, or one that was changed."""


def _go_on() -> None:
    """Go on."""


@define(eq=False, repr=False)
class Sealer:
    """Encrypts and decrypts the files of one folder. Its methods block.

    Args:
        secret: the key as it is configured, of any length.
    """

    _secret: str
    _keys: dict[bytes, bytes] = field(factory=dict)

    def master_key(self, folder: Path) -> bytes:
        """Return the key of a folder, whose salt is made where it has none.

        Raises:
            OSError: that cannot be read or written.
        """
        path = folder / SALT
        salt = path.read_bytes() if path.exists() else b""
        if len(salt) != _SALT_BYTES:
            salt = os.urandom(_SALT_BYTES)
            with _created(path) as file:
                file.write(salt)
        if salt not in self._keys:
            self._keys[salt] = hashlib.scrypt(self._secret.encode(), salt=salt, dklen=32, **_COST)
        return self._keys[salt]

    def seal(self, source: Path, target: Path, name: str, checkpoint: Checkpoint = _go_on) -> int:
        """Encrypt a file into another one, under a name. Returns its size in bytes.

        Raises:
            OSError: one of them cannot be read or written.
        """
        with source.open("rb") as plain, _created(target) as sealed:
            _seal(self.master_key(target.parent), plain, sealed, name, checkpoint)
            return sealed.tell()

    def open(self, source: Path, target: Path, name: str, checkpoint: Checkpoint = _go_on) -> None:
        """Decrypt a file into another one.

        Raises:
            NotSealed: it is not what was encrypted under the name. What was written of the other one has no meaning.
            OSError: one of them cannot be read or written.
        """
        with source.open("rb") as sealed, _created(target) as plain:
            _open(self.master_key(source.parent), sealed, plain, name, checkpoint)

    def sealed_text(self, folder: Path, text: str, name: str) -> str:
        """Return a text encrypted, for a file of a folder.

        Raises:
            OSError: see `master_key`.
        """
        sealed = io.BytesIO()
        _seal(self.master_key(folder), io.BytesIO(text.encode()), sealed, name, _go_on)
        return base64.b64encode(sealed.getvalue()).decode()

    def opened_text(self, folder: Path, text: str, name: str) -> str:
        """Return what `sealed_text` was given.

        Raises:
            NotSealed: it is nothing that was encrypted under the name.
            OSError: see `master_key`.
        """
        plain = io.BytesIO()
        try:
            sealed = base64.b64decode(text, validate=True)
        except ValueError:
            raise NotSealed("it is not encrypted") from None
        _open(self.master_key(folder), io.BytesIO(sealed), plain, name, _go_on)
        return plain.getvalue().decode()


def _seal(master: bytes, plain: BinaryIO, sealed: BinaryIO, name: str, checkpoint: Checkpoint) -> None:
    own = os.urandom(_ID_BYTES)
    sealed.write(_MAGIC + own)
    cipher, number, chunk = _cipher(master, own), 0, plain.read(CHUNK_BYTES)
    while True:
        checkpoint()
        following = plain.read(CHUNK_BYTES)
        sealed.write(cipher.encrypt(_nonce(number, is_last=not following), chunk, name.encode()))
        if not following:
            return
        number, chunk = number + 1, following


def _open(master: bytes, sealed: BinaryIO, plain: BinaryIO, name: str, checkpoint: Checkpoint) -> None:
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - an extra, and few routers need it

    head, size = sealed.read(len(_MAGIC) + _ID_BYTES), CHUNK_BYTES + _TAG_BYTES
    if not head.startswith(_MAGIC) or len(head) < len(_MAGIC) + _ID_BYTES:
        raise NotSealed("it is not encrypted")
    cipher, number, chunk = _cipher(master, head[len(_MAGIC) :]), 0, sealed.read(size)
    while True:
        checkpoint()
        following = sealed.read(size)
        try:
            plain.write(cipher.decrypt(_nonce(number, is_last=not following), chunk, name.encode()))
        except InvalidTag:
            raise NotSealed("it was encrypted with another key, or is damaged") from None
        if not following:
            return
        number, chunk = number + 1, following


def is_sealed_text(text: str) -> bool:
    """Tell whether a text looks like what `Sealer.sealed_text` makes."""
    return text.startswith(base64.b64encode(_MAGIC).decode())


def can_seal() -> bool:
    """Tell whether there is what encrypts: the extra `encryption`."""
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: F401, PLC0415 - an extra
    except ImportError:
        return False
    return True


def _cipher(master: bytes, own: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - see `_open`

    return AESGCM(hmac.digest(master, own, "sha256"))


def _nonce(number: int, *, is_last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes((is_last,))


def _created(path: Path) -> BinaryIO:
    """Make a file anew that only its owner can read, whatever was there."""
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY
    return os.fdopen(os.open(path, flags, 0o600), "wb")
