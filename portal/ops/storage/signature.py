"""Ed25519 signatures of what is off-site: made with a repository's key, verified with its public half."""

from __future__ import annotations


class SigningKey:
    """The key of a repository.

    Arguments:
        secret: its 32 bytes.
    """

    def __init__(self, secret: bytes) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self.signer = self._key.public_key().public_bytes_raw().hex()

    def __repr__(self) -> str:
        return f"SigningKey({self.signer})"

    def sign(self, data: bytes) -> str:
        """The signature, in hexadecimal."""
        return self._key.sign(data).hex()


def is_signed(data: bytes, signer: str, signature: str) -> bool:
    """True if a signature is the signer's."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(signer)).verify(bytes.fromhex(signature), data)
    except (InvalidSignature, ValueError):
        return False
    return True
