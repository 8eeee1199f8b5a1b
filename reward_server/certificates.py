"""PEM files of TLS, tried before they are used: of a bad one gRPC itself says only that a connection failed."""

import ssl
from pathlib import Path

from winnow.errors import UsageError

File = str | Path


def read_file(path: File, name: str) -> bytes:
    """The bytes of a file that an option or key `name` gives. Raises UsageError."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(
            f"{name} {str(path)!r} cannot be read ({error.strerror}); give the path of a PEM or text file"
        ) from None


def read_authorities(path: File, name: str) -> bytes:
    """Certificates that are trusted. Raises UsageError for a file that holds none."""
    data = read_file(path, name)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        raise UsageError(f"{name} {str(path)!r} holds no PEM certificate ({error})") from None
    return data


def read_pair(certificate: File, key: File, names: tuple[str, str]) -> tuple[bytes, bytes]:
    """A certificate and its private key. Raises UsageError for files that do not fit together."""
    data = read_file(certificate, names[0]), read_file(key, names[1])
    try:
        # An empty password: an encrypted key is an error, not a question on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise UsageError(
            f"{names[0]} {str(certificate)!r} and {names[1]} {str(key)!r} are no pair of PEM files without password "
            f"({error}); give the certificate of that key"
        ) from None
    return data
