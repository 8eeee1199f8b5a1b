"""Self-signed certificates, and a scripted server that asks its callers for one."""

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


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a self-signed certificate of 127.0.0.1 and its key as PEM files; return their paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_path = folder / f"{name}.pem"
    key_path = folder / f"{name}.key"
    certificate_path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_path, key_path


def mutual_tls_server(service: ScriptedService, folder: Path) -> tuple[AbstractContextManager[str], dict[str, Path]]:
    """Return a server that asks for the client's certificate, and the TLS arguments of a client that it knows."""
    server_certificate, server_key = make_certificate(folder, "server")
    client_certificate, client_key = make_certificate(folder, "client")
    credentials = grpc.ssl_server_credentials(
        [(server_key.read_bytes(), server_certificate.read_bytes())],
        client_certificate.read_bytes(),
        require_client_auth=True,
    )
    arguments = {"tls_ca": server_certificate, "tls_certificate": client_certificate, "tls_key": client_key}
    return scripted_server(service, credentials=credentials), arguments
