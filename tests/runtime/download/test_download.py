"""The download against a mirror over HTTP, with the real hub client: right files, wrong bytes, interruptions."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepseek_runtime.weights.download import MARKER, Order, Progress, download, main
from deepseek_runtime.weights.hub import DownloadError, Hub
from hub_mirror import mirror

SHARD = "model-00001-of-00002.safetensors"
FILES = {
    "config.json": b'{"model_type": "deepseek_v3"}',
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    SHARD: bytes(range(256)) * 4000,
    "model-00002-of-00002.safetensors": b"second" * 1000,
}
EXTRAS = {"README.md": b"# not needed", "inference/model.py": b"code", ".gitattributes": b"*.safetensors lfs"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "hub" / "org" / "name"
    for name, data in {**FILES, **EXTRAS}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return tmp_path / "hub"


@pytest.fixture
def endpoint(root: Path) -> Iterator[str]:
    with mirror(root) as url:
        yield url


@pytest.fixture
def order(tmp_path: Path) -> Order:
    return Order(source="hf://org/name", destination=tmp_path / "weights")


def hub(endpoint: str) -> Hub:
    return Hub(endpoint=endpoint, retries=1, backoff=0.01)


def ignore(_: Progress) -> None:
    pass


def present(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock", MARKER}


def test_fetches_what_serving_needs_and_nothing_else(order: Order, endpoint: str) -> None:
    reports: list[Progress] = []
    receipt = download(order, hub(endpoint), reports.append)
    assert present(order.destination) == set(FILES)
    assert all((order.destination / name).read_bytes() == data for name, data in FILES.items())
    assert not any(path.is_symlink() for path in order.destination.iterdir())
    assert (receipt.files, receipt.bytes) == (len(FILES), sum(map(len, FILES.values())))
    assert reports[-1] == Progress(receipt.bytes, receipt.bytes, len(FILES), len(FILES))


def test_a_valid_marker_ends_the_run_without_asking_the_hub(order: Order, endpoint: str) -> None:
    first = download(order, hub(endpoint), ignore)
    assert download(order, hub("http://127.0.0.1:9"), ignore) == first


def test_a_file_that_lost_bytes_since_is_fetched_again(order: Order, endpoint: str) -> None:
    download(order, hub(endpoint), ignore)
    (order.destination / SHARD).write_bytes(b"short")
    download(order, hub(endpoint), ignore)
    assert (order.destination / SHARD).read_bytes() == FILES[SHARD]


def test_an_interrupted_run_keeps_whole_files_and_replaces_wrong_ones(order: Order, endpoint: str, root: Path) -> None:
    order.destination.mkdir()
    (order.destination / SHARD).write_bytes(FILES[SHARD])
    (order.destination / "config.json").write_bytes(b"x" * len(FILES["config.json"]))
    (root / "org" / "name" / SHARD).unlink()  # whoever asks for it now fails
    download(order, hub(endpoint), ignore)
    assert (order.destination / "config.json").read_bytes() == FILES["config.json"]


@pytest.mark.parametrize("name", [SHARD, "config.json"])
def test_a_flipped_bit_is_named_deleted_and_recovered_from(name: str, order: Order, endpoint: str, root: Path) -> None:
    original = root / "org" / "name" / name
    data = bytearray(FILES[name])
    data[len(data) // 2] ^= 1
    original.write_bytes(data)
    with pytest.raises(DownloadError, match="wrong hash") as caught:
        download(order, hub(endpoint), ignore)
    assert caught.value.file == name
    assert not (order.destination / name).exists()
    assert not (order.destination / MARKER).exists()

    original.write_bytes(FILES[name])
    assert download(order, hub(endpoint), ignore).files == len(FILES)


def test_a_truncated_file_is_named_and_never_kept(order: Order, endpoint: str, root: Path) -> None:
    (root / "org" / "name" / SHARD).write_bytes(FILES[SHARD][:-100])
    with pytest.raises(DownloadError, match=SHARD) as caught:
        download(order, hub(endpoint), ignore)
    assert caught.value.file == SHARD
    assert not (order.destination / SHARD).exists()
    assert not (order.destination / MARKER).exists()


def test_a_revision_is_resolved_to_the_same_commit_by_name_and_by_commit(order: Order, endpoint: str) -> None:
    snapshot = hub(endpoint).snapshot("org/name", "main")
    assert hub(endpoint).snapshot("org/name", snapshot.commit) == snapshot


@pytest.mark.parametrize(
    ("source", "revision", "sentence"),
    [
        ("hf://org/other", "main", "no such repository"),
        ("hf://org/name", "v2", "no such revision"),
        ("s3://bucket/prefix", "main", "only hf://org/name"),
        ("hf://name", "main", "only hf://org/name"),
    ],
)
def test_what_cannot_be_had_is_said_in_a_sentence(
    source: str, revision: str, sentence: str, tmp_path: Path, endpoint: str
) -> None:
    order = Order(source=source, revision=revision, destination=tmp_path / "weights")
    with pytest.raises(DownloadError, match=sentence):
        download(order, hub(endpoint), ignore)


def test_two_processes_at_once_make_one_download(order: Order, endpoint: str) -> None:
    receipts = []
    threads = [threading.Thread(target=lambda: receipts.append(download(order, hub(endpoint), ignore))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert receipts[0] == receipts[1]


def test_the_command_writes_its_result_to_the_termination_log(tmp_path: Path, endpoint: str) -> None:
    log = tmp_path / "termination-log"
    command = [sys.executable, "-m", "deepseek_runtime.weights.download", "--source", "hf://org/name"]
    command += ["--endpoint", endpoint, "--destination", str(tmp_path / "weights"), "--termination-log", str(log)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    written = json.loads(log.read_text())
    assert set(written) == {"commit", "bytes", "files"}
    assert "5 of 5 files" in result.stdout


def test_the_command_reports_a_failure_with_the_file(
    tmp_path: Path, endpoint: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "org" / "name" / SHARD).write_bytes(bytes(len(FILES[SHARD])))
    log = tmp_path / "termination-log"
    arguments = ["--source", "hf://org/name", "--endpoint", endpoint, "--destination", str(tmp_path / "weights")]
    assert main([*arguments, "--termination-log", str(log)]) == 1
    written = json.loads(log.read_text())
    assert written["file"] == SHARD
    assert SHARD in written["error"]
    assert "Traceback" not in capsys.readouterr().err


def test_a_volume_that_is_too_small_is_refused_with_both_numbers(
    order: Order, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepseek_runtime.weights.download.shutil.disk_usage", lambda _: type("", (), {"free": 1000}))
    with pytest.raises(DownloadError, match=r"needs 0\.0 GB more .* has 0\.0 GB free"):
        download(order, hub(endpoint), ignore)
