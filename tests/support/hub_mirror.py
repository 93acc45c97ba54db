"""The runtime's own hub mirror on a free port, for as long as a `with` block lasts."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from deepseek_runtime.hub_mirror import build_mirror, scan
from deepseek_runtime.server.listen import bind


@contextmanager
def mirror(root: Path) -> Iterator[str]:
    """Serve `root/<org>/<name>/…`; yields the endpoint's URL. Files may be changed meanwhile."""
    listener = bind("127.0.0.1", 0)
    config = uvicorn.Config(build_mirror(scan(root)), log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
