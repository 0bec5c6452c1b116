"""Ed25519 signatures of commits and of WAL."""

from __future__ import annotations


class SigningKey:
    """The key of a repository.

    Arguments:
        secret: the 32 bytes of the private key.
    """

    def __init__(self, secret: bytes) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self.signer = self._key.public_key().public_bytes_raw().hex()

    def __repr__(self) -> str:
        return f"SigningKey({self.signer})"

    def sign(self, data: bytes) -> str:
        """Sign data; the signature is in hexadecimal."""
        return self._key.sign(data).hex()


def is_signed(data: bytes, signer: str, signature: str) -> bool:
    """True if a signature of data is valid."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(signer)).verify(bytes.fromhex(signature), data)
    except (InvalidSignature, ValueError):
        return False
    return True
