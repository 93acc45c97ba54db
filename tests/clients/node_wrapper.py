"""The express wrapper in `node/`, installed and started as its README would say, and asked by a browser's fetch."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

HERE = Path(__file__).with_name("node")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for file in HERE.iterdir():
            shutil.copy(file, folder)
        install = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run(install, cwd=folder, check=True, stdout=sys.stderr)
        with subprocess.Popen(["node", "server.js"], cwd=folder, stdout=subprocess.PIPE, text=True) as wrapper:
            try:
                assert wrapper.stdout is not None
                ask(f"http://127.0.0.1:{int(wrapper.stdout.readline())}/chat")
            finally:
                wrapper.terminate()


def ask(url: str) -> None:
    with httpx.stream("POST", url, json=body("What is 12 plus 30?"), timeout=60) as response:
        pieces = list(response.iter_text())
    assert "42" in "".join(pieces), pieces
    assert len(pieces) > 1, "the answer came in one piece"
    refused = httpx.post(url, json=body("word " * 100_000), timeout=60)
    assert refused.status_code == 400
    assert refused.json()["code"] == "context_length_exceeded", refused.text


def body(question: str) -> dict[str, list[dict[str, str]]]:
    return {"messages": [{"role": "user", "content": question}]}


if __name__ == "__main__":
    main()
