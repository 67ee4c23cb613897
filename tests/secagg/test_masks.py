"""The key stream and the agreement beside the test vectors of their standards."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from fedjax_health.secagg import masks


def rotate(x, n):
    return ((x << n) | (x >> (32 - n))) & 0xFFFFFFFF


def chacha20_block(key, counter, nonce):
    """RFC 8439, section 2.3, as it is written there."""
    words = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574]
    words += [int.from_bytes(key[i : i + 4], "little") for i in range(0, 32, 4)]
    words += [counter]
    words += [int.from_bytes(nonce[i : i + 4], "little") for i in range(0, 12, 4)]
    state = list(words)

    def quarter(a, b, c, d):
        for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            state[x] = (state[x] + state[y]) & 0xFFFFFFFF
            state[z] = rotate(state[z] ^ state[x], turn)

    for _ in range(10):
        for i in range(4):
            quarter(i, i + 4, i + 8, i + 12)
        for i in range(4):
            quarter(i, (i + 1) % 4 + 4, (i + 2) % 4 + 8, (i + 3) % 4 + 12)
    out = [(a + b) & 0xFFFFFFFF for a, b in zip(state, words, strict=True)]
    return b"".join(x.to_bytes(4, "little") for x in out)


def test_the_block_of_rfc_8439():
    key, nonce = bytes(range(32)), bytes.fromhex("000000090000004a00000000")
    expected = bytes.fromhex(
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
    )
    assert chacha20_block(key, 1, nonce) == expected
    start = (1).to_bytes(4, "little") + nonce
    openssl = Cipher(algorithms.ChaCha20(key, start), None).encryptor()
    assert openssl.update(bytes(64)) == expected


def test_a_mask_is_the_key_stream():
    key = bytes(range(100, 132))
    blocks = b"".join(chacha20_block(key, i, bytes(12)) for i in range(3))
    np.testing.assert_array_equal(
        masks.expand(key, 40), np.frombuffer(blocks[:160], "<u4")
    )


def test_masks_are_uniform():
    drawn = masks.expand(b"k" * 32, 100_000)
    counts = np.bincount(drawn >> 24, minlength=256)
    # Chi squared with 255 degrees of freedom: mean 255, standard deviation 22.6.
    assert np.sum((counts - counts.mean()) ** 2 / counts.mean()) < 255 + 5 * 22.6


def test_the_scalar_product_of_rfc_7748():
    """Section 5.2, after one iteration: scalar and point are both 9."""
    private = X25519PrivateKey.from_private_bytes(b"\x09" + bytes(31))
    assert masks.public_of(private) == bytes.fromhex(
        "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
    )


def test_both_ends_agree():
    a, b = (X25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in (1, 2))
    one = masks.agree(a, masks.public_of(b), b"mask")
    assert one == masks.agree(b, masks.public_of(a), b"mask")
    assert one != masks.agree(a, masks.public_of(b), b"seal")


def test_hkdf_of_rfc_5869():
    """Test case 3, without salt and purpose, and its first 32 bytes."""
    made = masks.derive(b"\x0b" * 22, b"")
    assert made == bytes.fromhex(
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
    )


def test_a_key_of_low_order_is_refused():
    with pytest.raises(ValueError, match="shared"):
        masks.agree(X25519PrivateKey.generate(), bytes(32), b"mask")
