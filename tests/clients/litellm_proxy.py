"""LiteLLM, as gateways use it: completions, streams with usage, tools, and the small request of its health check."""

import os
import warnings

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the internet for prices
import litellm
from openai_sync import QUESTION, TOOL, check_arguments

for provider in ("openai", "hosted_vllm"):
    options = {
        "model": f"{provider}/test",
        "api_base": os.environ["OPENAI_BASE_URL"],
        "api_key": "none",
        "messages": QUESTION,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own pydantic models complain about themselves
        answer = litellm.completion(**options, temperature=0)
        assert "42" in answer.choices[0].message.content
        assert answer.usage.total_tokens > 0

        chunks = list(litellm.completion(**options, temperature=0, stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == answer.choices[0].message.content
        usage = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
        assert usage[-1].completion_tokens == answer.usage.completion_tokens
        assert litellm.stream_chunk_builder(chunks).choices[0].message.content == text

        called = litellm.completion(
            **options, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, temperature=0
        )
        call = called.choices[0].message.tool_calls[0]
        check_arguments(call.function.name, call.function.arguments)

        assert litellm.completion(**options, max_tokens=1).choices[0].finish_reason == "length"
        try:
            litellm.completion(**{**options, "model": f"{provider}/nobody"})
        except litellm.NotFoundError as error:
            assert "nobody" in str(error)
        else:
            raise AssertionError("an unknown model was accepted")
