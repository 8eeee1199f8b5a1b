"""PEM files of TLS, read and validated early: gRPC reports an unusable file only as "connection failed"."""

import ssl
from pathlib import Path

from winnow.errors import UsageError

FilePath = str | Path


def read_file(path: FilePath, name: str) -> bytes:
    """Read the file that was set as the option or key `name`. Raises UsageError if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(
            f"{name} {str(path)!r} cannot be read ({error.strerror}); give the path of a PEM or text file"
        ) from None


def read_authorities(path: FilePath, name: str) -> bytes:
    """Read the certificates of trusted authorities. Raises UsageError for a file that is unreadable or has none."""
    data = read_file(path, name)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        raise UsageError(f"{name} {str(path)!r} holds no PEM certificate ({error})") from None
    return data


def read_pair(certificate: FilePath, key: FilePath, names: tuple[str, str]) -> tuple[bytes, bytes]:
    """Read a certificate and its private key, which were set as the options or keys `names`.

    Raises UsageError if one is unreadable, needs a password, or does not belong to the other.
    """
    certificate_data = read_file(certificate, names[0])
    key_data = read_file(key, names[1])
    try:
        # An empty password: an encrypted key is an error, not a question on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise UsageError(
            f"{names[0]} {str(certificate)!r} and {names[1]} {str(key)!r} are not a pair of PEM files without password "
            f"({error}); give the certificate of that key"
        ) from None
    return certificate_data, key_data
