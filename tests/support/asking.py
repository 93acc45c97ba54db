"""Ask many questions through the OpenAI client, from inside the cluster's network: `python asking.py < job.json`.

The job is {"url", "questions", "concurrency", "timeout"}; one JSON line per question comes out, in order:
{"text", "error", "seconds"}, where `error` is the exception's class and message or null.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import openai

from cluster_access import Cluster


@dataclass(frozen=True)
class Reply:
    """What came back for one question; exactly one of `text` and `error` is set."""

    text: str | None
    error: str | None
    seconds: float


def ask(cluster: Cluster, url: str, questions: list[str], *, concurrency: int = 8, timeout: float = 60) -> list[Reply]:
    """Ask from within the cluster's network, `timeout` seconds for each question and no retries."""
    job = {"url": url, "questions": questions, "concurrency": concurrency, "timeout": timeout}
    done = cluster.run_in_network([sys.executable, __file__], input=json.dumps(job))
    assert done.returncode == 0, f"the asking process failed: {done.stderr}"
    return [Reply(**json.loads(line)) for line in done.stdout.splitlines()]


def _ask_one(client: openai.OpenAI, model: str, question: str) -> Reply:
    started = time.monotonic()
    try:
        messages = [{"role": "user", "content": question}]
        answer = client.chat.completions.create(model=model, messages=messages, temperature=0)  # type: ignore[arg-type]
        return Reply(answer.choices[0].message.content, None, time.monotonic() - started)
    except openai.OpenAIError as error:
        return Reply(None, f"{type(error).__name__}: {error}", time.monotonic() - started)


def main() -> None:
    """Read the job, ask, print the replies."""
    job = json.load(sys.stdin)
    client = openai.OpenAI(base_url=f"{job['url']}/v1", api_key="none", timeout=job["timeout"], max_retries=0)
    with ThreadPoolExecutor(job["concurrency"]) as pool:
        for reply in pool.map(lambda question: _ask_one(client, "tutor", question), job["questions"]):
            sys.stdout.write(json.dumps(asdict(reply)) + "\n")


if __name__ == "__main__":
    main()
