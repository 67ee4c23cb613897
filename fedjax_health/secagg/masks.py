"""Keys of a client, keys of a pair, and the key stream that masks an input.

X25519 (RFC 7748) for agreement, HKDF with SHA-256 (RFC 5869) for every key that is
derived, ChaCha20 (RFC 8439) as the generator of masks: all from OpenSSL through
``cryptography``.
"""

import functools

import numpy as np
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
_HASH = hashes.SHA256()
_NONCE = bytes(16)
_RAW = serialization.Encoding.Raw, serialization.PublicFormat.Raw


def derive(secret: bytes, info: bytes) -> bytes:
    """Returns 32 bytes of HKDF-SHA256 of a secret, for the purpose that is named."""
    return HKDF(_HASH, KEY_BYTES, None, info).derive(secret)


def public_of(private: X25519PrivateKey) -> bytes:
    """Returns the 32 bytes of a private key's public key."""
    return private.public_key().public_bytes(*_RAW)


def agree(private: X25519PrivateKey, public: bytes, info: bytes) -> bytes:
    """Returns the 32-byte key that the owners of two key pairs have in common.

    Raises:
      ValueError: for a public key of low order, which would fix the result.
    """
    return derive(private.exchange(X25519PublicKey.from_public_bytes(public)), info)


@functools.lru_cache(maxsize=2)
def _zeros(size: int) -> bytes:
    return bytes(size)


def key_stream(key: bytes, size: int) -> bytes:
    """Returns the first bytes of ChaCha20's key stream, counter and nonce 0.

    Every key is used once, so the nonce need not differ.
    """
    stream = bytearray(size)
    encryptor = Cipher(algorithms.ChaCha20(key, _NONCE), None).encryptor()
    encryptor.update_into(_zeros(size), stream)
    return stream  # pyright: ignore[reportReturnType]


def expand(key: bytes, size: int) -> np.ndarray:
    """Returns a mask of uniform integers, uint32 ``[size]``."""
    return np.frombuffer(key_stream(key, 4 * size), "<u4")
