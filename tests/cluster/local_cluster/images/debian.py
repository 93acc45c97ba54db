"""The lowest layer: a small Debian with Python, unpacked from .deb files; no package's install script is run."""

import re
import subprocess
from pathlib import Path

from ..errors import ClusterError
from ..host import search_path

USER = 65532
# What the images run, beside Python itself: a shell, the tools a person looks for in a pod, libraries of the wheels.
_WANTED = ("dash", "coreutils", "grep", "sed", "procps", "libc-bin", "libstdc++6", "ca-certificates")
# Pulled in only for install scripts, which are not run.
_UNUSED = re.compile(
    r"(dpkg|.*perl.*|.*debconf.*|tar|media-types|mime-support|.*awk|install-info|openssl|libslang2|libnewt.*|whiptail)$"
)
_SHARE = ("man", "locale", "info", "lintian", "bash-completion", "doc-base")
# gconv: character sets of C programs; Python brings its own.
_LEFT_OUT = (*(f"./usr/share/{name}" for name in _SHARE), "./usr/lib/*/gconv")
_PASSWD = f"""root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
nonroot:x:{USER}:{USER}:nonroot:/tmp:/bin/sh
"""
_GROUP = f"root:x:0:\nnogroup:x:65534:\nnonroot:x:{USER}:\n"


def python_version() -> str:
    """`3.11` on Debian 12: the version that Debian's python3 stands for."""
    found = re.search(r"Depends: python(3\.\d+)-minimal", _output("apt-cache", "depends", "python3-minimal"))
    if found is None:
        _output("apt-get", "-q", "update")
        found = re.search(r"Depends: python(3\.\d+)-minimal", _output("apt-cache", "depends", "python3-minimal"))
    if found is None:
        raise ClusterError("apt knows no python3-minimal: images are made from Debian packages, check apt's sources.")
    return found[1]


def unpack(root: Path, python: str, scratch: Path) -> None:
    """Fill the empty folder `root`; `scratch` takes the downloads."""
    _make_skeleton(root)
    names = _closure([f"python{python}-minimal", f"libpython{python}-stdlib", *_WANTED])
    _output("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *names, folder=scratch)
    for package in sorted(scratch.glob("*.deb")):
        _unpack_one(package, root)
    for alias, target in (("sh", "dash"), ("python3", f"python{python}"), ("python", "python3")):
        link = root / "usr" / "bin" / alias
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    _write_certificates(root)


def _make_skeleton(root: Path) -> None:
    for folder in ("usr/bin", "usr/lib", "usr/lib64", "usr/sbin", "etc/ssl/certs", "var/tmp", "tmp", "root"):
        (root / folder).mkdir(parents=True)
    for folder in ("proc", "sys", "dev", "run"):
        (root / folder).mkdir()
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    for folder in ("tmp", "var/tmp"):
        (root / folder).chmod(0o1777)
    (root / "etc/passwd").write_text(_PASSWD)
    (root / "etc/group").write_text(_GROUP)
    (root / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")


def _closure(names: list[str]) -> list[str]:
    """`names` and all that they depend on, without what only install scripts use."""
    relations = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    flags = ["--recurse", *(f"--no-{relation}" for relation in relations)]
    listed = _output("apt-cache", "depends", *flags, *names)
    found = {line for line in listed.splitlines() if re.match(r"\w", line) and not _UNUSED.match(line)}
    shown = _output("apt-cache", "policy", *sorted(found))
    # Virtual packages have no candidate version.
    return re.findall(r"^(\S+):\n +Installed: .*\n +Candidate: \d", shown, re.MULTILINE)


def _unpack_one(package: Path, root: Path) -> None:
    left_out = [f"--exclude={path}" for path in _LEFT_OUT]
    reading = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE)
    command = ["tar", "-x", "-C", str(root), "--keep-directory-symlink", "--no-same-owner", *left_out]
    done = subprocess.run(command, stdin=reading.stdout, capture_output=True, text=True, check=False)
    if reading.wait() != 0 or done.returncode != 0:
        raise ClusterError(f"{package.name} could not be unpacked: {done.stderr.strip()}")


def _write_certificates(root: Path) -> None:
    """What the install script of ca-certificates would do."""
    certificates = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
    (root / "etc/ssl/certs/ca-certificates.crt").write_text("".join(path.read_text() for path in certificates))


def _output(*command: str | Path, folder: Path | None = None) -> str:
    environment = {"PATH": search_path(), "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"{command[0]} failed while an image was made: {done.stderr.strip()[-500:]}")
    return done.stdout
