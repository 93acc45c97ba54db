"""One rank of a group that answers the tutor's questions in JSON, without and with drafts: `grammar_program.py OUT`.

Rank 0 writes OUT: for each number of drafts the answers, and how many drafts held.
"""

from __future__ import annotations

import json
import queue
import sys
from pathlib import Path
from typing import Any

from deepseek_runtime.dist.group import Group
from deepseek_runtime.dist.init import join_group
from deepseek_runtime.engine.build import load_rank, make_engine
from deepseek_runtime.engine.engine import Engine, Event, Request, Token
from deepseek_runtime.engine.sampling import SamplingParams
from deepseek_runtime.settings import Settings, checkpoint_folder
from deepseek_runtime.text.grammar import Grammars, JsonForm
from deepseek_runtime.text.template import ChatTemplate
from deepseek_runtime.text.tokenizer import Tokenizer

TUTOR = checkpoint_folder("tutor")
DRAFTS = range(4)
QUESTIONS = ["What is 792 minus 297?", "What is 12 times 34?", "What is 123 plus 989?"]


def _closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


SCHEMAS = [
    _closed(said={"type": "string", "maxLength": 60}),
    _closed(answer={"type": "integer", "minimum": 0, "maximum": 9999}, sure={"type": "boolean"}),
    _closed(steps={"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 2, "maxItems": 3}),
]
TEMPERATURES = [0.0, 0.8]


def answer_all(engine: Engine) -> list[str]:
    """The text for every question under every schema at every temperature, all of them in the engine together."""
    tokenizer = Tokenizer(TUTOR)
    template = ChatTemplate(TUTOR, tokenizer)
    grammars = Grammars(tokenizer, template.dialect)
    sinks: list[queue.SimpleQueue[Event]] = []
    requests: list[Request] = []
    for question in QUESTIONS:
        prompt = tuple(template.encode([{"role": "user", "content": question}]).ids)
        for schema in SCHEMAS:
            for temperature in TEMPERATURES:
                params = SamplingParams(
                    max_tokens=200,
                    temperature=temperature,
                    seed=len(requests),
                    mask=grammars.json(JsonForm(schema, strict=True)).mask(),
                    stop_token_ids=tokenizer.stop_ids,
                )
                sinks.append(queue.SimpleQueue())
                requests.append(Request(prompt, params, sinks[-1].put))
    engine.submit(requests)
    return [tokenizer.decode(tokens_of(sink)) for sink in sinks]


def tokens_of(events: queue.SimpleQueue[Event]) -> list[int]:
    """The tokens of an answer without the one that ends it."""
    tokens: list[int] = []
    while True:
        event = events.get(timeout=120)
        assert isinstance(event, Token), event
        if event.finish_reason is not None:
            assert event.finish_reason == "stop", "the grammar lets every answer end"
            return tokens
        tokens.append(event.sampled.token)


def run(group: Group) -> dict[int, dict[str, Any]]:
    """This rank's part of all answers; on rank 0 they are the result."""
    results: dict[int, dict[str, Any]] = {}
    for drafts in DRAFTS:
        settings = Settings(
            model=TUTOR, served_model_name=("tutor",), device="cpu", kv_tokens=4096, speculative_tokens=drafts
        )
        loaded = load_rank(settings, group, lambda _: None)
        if group.rank:
            loaded.runner.follow(lambda _: None)
            continue
        engine = make_engine(settings, loaded, group.device, on_failure=sys.exit)
        engine.start()
        answers = answer_all(engine)
        results[drafts] = {"answers": answers, "held": sum(engine.stats().speculation.accepted)}
        engine.stop(60)
    return results


def main() -> None:
    group = join_group("cpu")
    results = run(group)
    group.close()
    if group.rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
