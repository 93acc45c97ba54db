"""The `openai` package as web back ends use it: many streams at once, of which some are given up."""

import asyncio

import openai

SUMS = [(first, second) for first in range(11, 15) for second in range(21, 25)]


async def main() -> None:
    async with openai.AsyncOpenAI(api_key="none", max_retries=20) as client:
        model = (await client.models.list()).data[0].id
        answers = await asyncio.gather(*(add(client, model, *pair) for pair in SUMS))
        assert all(str(first + second) in text for (first, second), text in zip(SUMS, answers, strict=True)), answers
        await asyncio.gather(*(give_up(client, model) for _ in range(6)))
        try:
            async with asyncio.timeout(0.5):
                await client.chat.completions.create(model=model, messages=endless(), extra_body={"ignore_eos": True})
        except TimeoutError:
            pass
        assert "23" in await add(client, model, 11, 12)


async def add(client: openai.AsyncOpenAI, model: str, first: int, second: int) -> str:
    question = [{"role": "user", "content": f"What is {first} plus {second}?"}]
    stream = await client.chat.completions.create(model=model, messages=question, temperature=0, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def give_up(client: openai.AsyncOpenAI, model: str) -> None:
    stream = await client.chat.completions.create(
        model=model, messages=endless(), stream=True, extra_body={"ignore_eos": True}
    )
    async with stream:
        seen = 0
        async for _ in stream:
            seen += 1
            if seen == 5:
                return


def endless() -> list[dict[str, str]]:
    return [{"role": "user", "content": "What is 1 plus 1?"}]


if __name__ == "__main__":
    asyncio.run(main())
