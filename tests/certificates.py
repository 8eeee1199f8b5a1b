"""Certificates for tests of TLS, and a scripted server that asks its callers for one."""

from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.scripted_server import ScriptedService, scripted_server


class Authority:
    """A certificate authority; `path` is its own certificate, a PEM file."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder = folder
        self.path = folder / f"{name}.pem"
        self._name = common_name(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._write_certificate(self.path, self._name, self._key, is_authority=True)

    def certificate(self, name: str) -> tuple[Path, Path]:
        """Make a certificate of 127.0.0.1 for `name`; return the paths of the certificate and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate_path = self.folder / f"{name}.crt"
        self._write_certificate(certificate_path, common_name(name), key, is_authority=False)
        key_path = self.folder / f"{name}.key"
        plain = serialization.NoEncryption()
        key_path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
        return certificate_path, key_path

    def _write_certificate(
        self, path: Path, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, is_authority: bool
    ) -> None:
        now = datetime.now(UTC)
        signed = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))


def common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def mutual_tls_server(service: ScriptedService, folder: Path) -> tuple[AbstractContextManager[str], dict[str, Path]]:
    """Return a server that asks for the client's certificate, and the TLS arguments of a client that it admits."""
    authority = Authority(folder)
    server_certificate, server_key = authority.certificate("server")
    client_certificate, client_key = authority.certificate("client")
    credentials = grpc.ssl_server_credentials(
        [(server_key.read_bytes(), server_certificate.read_bytes())],
        authority.path.read_bytes(),
        require_client_auth=True,
    )
    arguments = {"tls_ca": authority.path, "tls_certificate": client_certificate, "tls_key": client_key}
    return scripted_server(service, credentials=credentials), arguments
