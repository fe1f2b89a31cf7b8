"""Where a cluster is and who the router is there: the service account of its Pod, or a kubeconfig."""

from __future__ import annotations

import base64
import binascii
import os
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from attrs import frozen

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a Pod finds its token, its namespace and the authority of the API server."""
_MOST_BYTES: Final = 1_000_000


class NoAccess(ValueError):
    """It cannot be told where a cluster is, or who the router is there; the message has the remedy."""


@frozen(repr=False)
class Access:
    """A cluster, and who the router is there.

    Attributes:
        server: the base URL of its API.
        namespace: in which workloads are unless it is said otherwise.
        token: sent as Bearer token; empty for none.
        token_file: where the token is, which is renewed there from time to time.
        authority: certificates (PEM) by which the server is verified; empty for the system's.
        certificate, key: of the router's own (PEM); empty for none.
        is_verified: the server's certificate is verified.
    """

    server: str
    namespace: str
    token: str = ""
    token_file: Path | None = None
    authority: str = ""
    certificate: str = ""
    key: str = ""
    is_verified: bool = True

    def tls(self) -> ssl.SSLContext:
        """Return what connections are secured by. Blocks.

        Raises:
            NoAccess: a certificate cannot be used.
        """
        try:
            context = ssl.create_default_context(cadata=self.authority or None)
            context.set_alpn_protocols(["http/1.1"])
            if not self.is_verified:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            if self.certificate:
                with _as_file(f"{self.certificate}\n{self.key}") as path:
                    context.load_cert_chain(path)
        except (OSError, ValueError) as error:
            raise NoAccess(f"its certificates cannot be used: {error}") from None
        return context


@contextmanager
def _as_file(text: str) -> Iterator[str]:
    """Have a text in a file that nobody else can read: OpenSSL takes certificates of its own from files only."""
    descriptor, path = tempfile.mkstemp(prefix="engine-router-")
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
        yield path
    finally:
        Path(path).unlink()


def find_access(
    kubeconfig: str | None,
    context: str | None,
    *,
    environ: Mapping[str, str] = os.environ,
    account: Path = SERVICE_ACCOUNT,
    home: Path | None = None,
) -> Access:
    """Find a cluster. Blocks.

    Args:
        kubeconfig: the file, where one is named.
        context: of the file; its current one where none is named.
        account: the folder of a Pod's service account.
        home: of the user, where `.kube/config` is.

    Raises:
        NoAccess: there is none, or it needs what the router does not do.
    """
    host = environ.get("KUBERNETES_SERVICE_HOST")
    if kubeconfig is None and context is None and host and (account / "token").exists():
        return _of_pod(host, environ.get("KUBERNETES_SERVICE_PORT", "443"), account)
    if kubeconfig is not None:
        return _of_file(Path(kubeconfig).expanduser(), context)
    named = [Path(word) for word in environ.get("KUBECONFIG", "").split(os.pathsep) if word]
    for path in named or [(home or Path.home()) / ".kube" / "config"]:
        if path.exists():
            return _of_file(path, context)
    raise NoAccess("no cluster is known: name a file with kubeconfig, or set $KUBECONFIG")


def _of_pod(host: str, port: str, account: Path) -> Access:
    try:
        namespace, authority = (_text(account / name).strip() for name in ("namespace", "ca.crt"))
    except OSError as error:
        raise NoAccess(f"the Pod's service account cannot be read: {error}") from None
    server = f"https://{f'[{host}]' if ':' in host else host}:{port}"
    return Access(server, namespace or "default", token_file=account / "token", authority=authority)


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MOST_BYTES).decode("utf-8", "replace")


def _of_file(path: Path, context: str | None) -> Access:
    import yaml  # noqa: PLC0415 - few engines are in clusters

    try:
        data = yaml.safe_load(_text(path))
    except OSError as error:
        raise NoAccess(f"{path} cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, RecursionError):
        raise NoAccess(f"{path} is not YAML") from None
    if not isinstance(data, dict):
        raise NoAccess(f"{path} is no kubeconfig")
    name = context or data.get("current-context")
    if not name:
        raise NoAccess(f"{path} has no current-context: name one with context")
    chosen = _entry(data, "contexts", "context", name, path)
    cluster = _entry(data, "clusters", "cluster", chosen.get("cluster"), path)
    user = _entry(data, "users", "user", chosen.get("user"), path) if chosen.get("user") else {}
    for way in ("exec", "auth-provider"):
        if way in user:
            raise NoAccess(
                f"{path}: user {chosen.get('user')!r} logs in by a program ({way}), which the router does not run; give it "
                "the token of a service account (kubectl create token NAME)"
            )
    server = cluster.get("server")
    if not isinstance(server, str) or not server.startswith(("https://", "http://")):
        raise NoAccess(f"{path}: cluster {chosen.get('cluster')!r} has no server")
    token_file = user.get("tokenFile")
    return Access(
        server.rstrip("/"),
        str(chosen.get("namespace") or "default"),
        token=str(user.get("token") or ""),
        token_file=None if token_file is None else path.parent / str(token_file),
        authority=_pem(cluster, "certificate-authority", path),
        certificate=_pem(user, "client-certificate", path),
        key=_pem(user, "client-key", path),
        is_verified=cluster.get("insecure-skip-tls-verify") is not True,
    )


def _entry(data: Mapping[str, Any], table: str, key: str, name: object, path: Path) -> Mapping[str, Any]:
    entries = data.get(table)
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("name") == name and isinstance(entry.get(key), dict):
            found: Mapping[str, Any] = entry[key]
            return found
    raise NoAccess(f"{path} has no {key} {name!r}")


def _pem(table: Mapping[str, Any], key: str, path: Path) -> str:
    """Return certificates or a key, which stand in the file itself, or in one that it names."""
    data, file = table.get(f"{key}-data"), table.get(key)
    try:
        if data:
            return base64.b64decode(str(data), validate=True).decode("ascii")
        return _text(path.parent / str(file)) if file else ""
    except (OSError, binascii.Error, UnicodeDecodeError) as error:
        raise NoAccess(f"{path}: its {key} cannot be used: {error}") from None
