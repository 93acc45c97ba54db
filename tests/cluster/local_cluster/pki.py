"""Keys, certificates and tokens of one run; they live as long as the cluster does."""

import base64
import json
import secrets
import subprocess
from pathlib import Path

from .layout import API_PORT, CLUSTER_DOMAIN, SERVICE_API, Layout, Node

API_SERVER = f"https://10.254.0.1:{API_PORT}"

_API_NAMES = ",".join(
    [f"DNS:kubernetes{suffix}" for suffix in ("", ".default", ".default.svc", f".default.svc.{CLUSTER_DOMAIN}")]
    + ["DNS:localhost", "IP:127.0.0.1", "IP:10.254.0.1", f"IP:{SERVICE_API}"]
)


def write_pki(layout: Layout, nodes: list[Node], forward_port: int) -> None:
    """Make the authority, the key pairs that the API server needs, and one token and kubeconfig per user.

    `forward_port`: where the API server is reached on 127.0.0.1, inside and outside the cluster's network alike.
    """
    layout.pki.mkdir(parents=True, exist_ok=True)
    _authority(layout.pki)
    _signed(layout.pki, "apiserver", "/CN=kube-apiserver", f"subjectAltName={_API_NAMES}\nextendedKeyUsage=serverAuth")
    _signed(layout.pki, "kubelet-client", "/O=system:masters/CN=apiserver", "extendedKeyUsage=clientAuth")
    _key(layout.pki / "sa.key")
    _openssl("ec", "-in", layout.pki / "sa.key", "-pubout", "-out", layout.pki / "sa.pub")
    _write_users(layout, nodes, f"https://127.0.0.1:{forward_port}")


def _write_users(layout: Layout, nodes: list[Node], forwarded: str) -> None:
    users = [("admin", "admin", "system:masters")]
    users += [(name, f"system:{name}", "") for name in ("kube-controller-manager", "kube-scheduler", "kube-proxy")]
    users += [("coredns", "system:coredns", "")]
    users += [(node.name, f"system:node:{node.name}", "system:nodes") for node in nodes]
    tokens = {file: secrets.token_hex(16) for file, _, _ in users}
    rows = [f'{tokens[file]},{user},{user},"{groups}"\n' for file, user, groups in users]
    (layout.pki / "tokens.csv").write_text("".join(rows))
    for file, _, _ in users:
        _write_kubeconfig(layout.pki / f"{file}.kubeconfig", layout.pki, API_SERVER, tokens[file])
    _write_kubeconfig(layout.kubeconfig, layout.pki, forwarded, tokens["admin"])


def _write_kubeconfig(path: Path, pki: Path, server: str, token: str) -> None:
    authority = base64.b64encode((pki / "ca.crt").read_bytes()).decode()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "local", "cluster": {"server": server, "certificate-authority-data": authority}}],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "local", "context": {"cluster": "local", "user": "user"}}],
        "current-context": "local",
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(config, indent=2))


def _authority(pki: Path) -> None:
    _key(pki / "ca.key")
    extensions = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"]
    flags = [part for extension in extensions for part in ("-addext", extension)]
    files: list[str | Path] = ["-key", pki / "ca.key", "-out", pki / "ca.crt"]
    _openssl("req", "-x509", "-new", "-subj", "/CN=dsv3-local-cluster", "-days", "3650", *files, *flags)


def _signed(pki: Path, name: str, subject: str, extensions: str) -> None:
    _key(pki / f"{name}.key")
    (pki / f"{name}.ext").write_text(extensions + "\n")
    _openssl("req", "-new", "-key", pki / f"{name}.key", "-subj", subject, "-out", pki / f"{name}.csr")
    authority: list[str | Path] = ["-CA", pki / "ca.crt", "-CAkey", pki / "ca.key", "-CAcreateserial"]
    files: list[str | Path] = ["-in", pki / f"{name}.csr", "-extfile", pki / f"{name}.ext", "-out", pki / f"{name}.crt"]
    _openssl("x509", "-req", "-days", "3650", *authority, *files)


def _key(path: Path) -> None:
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
