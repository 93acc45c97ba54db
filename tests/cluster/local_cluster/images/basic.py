"""The two images that every cluster has: `pause`, which holds a pod's sandbox, and `busybox`, for small helpers."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from ..host import find
from ..layout import BUSYBOX_IMAGE, PAUSE_IMAGE, Layout
from ..oci import Image, Library

_USERS = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
_GROUPS = "root:x:0:\nnogroup:x:65534:\n"


def basic_images(layout: Layout) -> list[Image]:
    """Both images, from the library or made now (well under a second)."""
    library = Library(layout.images)
    makers = {PAUSE_IMAGE: _pause, BUSYBOX_IMAGE: _busybox}
    images = []
    for reference, make in makers.items():
        with tempfile.TemporaryDirectory() as scratch:
            images.append(library.find(reference) or make(library, Path(scratch)))
    return images


def _pause(library: Library, root: Path) -> Image:
    source = Path(__file__).with_name("pause.c")
    subprocess.run(["gcc", "-Os", "-static", "-s", "-o", root / "pause", source], check=True)
    return library.add_image(PAUSE_IMAGE, [library.add_layer(root)], {"Entrypoint": ["/pause"]})


def _busybox(library: Library, root: Path) -> Image:
    for folder in ("bin", "etc", "tmp", "root", "proc", "sys", "dev"):
        (root / folder).mkdir()
    (root / "tmp").chmod(0o1777)
    shutil.copy2(find("busybox") or "busybox", root / "bin" / "busybox")
    applets = subprocess.run([root / "bin" / "busybox", "--list"], check=True, capture_output=True, text=True).stdout
    for applet in set(applets.split()) - {"busybox"}:
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc" / "passwd").write_text(_USERS)
    (root / "etc" / "group").write_text(_GROUPS)
    return library.add_image(BUSYBOX_IMAGE, [library.add_layer(root)], {"Env": ["PATH=/bin"], "Cmd": ["sh"]})
