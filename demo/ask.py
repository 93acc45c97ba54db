"""Ask one question with the official OpenAI client and print the answer as it comes: ask.py URL QUESTION [MODEL]."""

import sys

import openai


def main() -> int:
    """Exit code 0 when the whole answer came, 1 with a sentence when it did not."""
    if len(sys.argv) < 3:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    url, question = sys.argv[1], sys.argv[2]
    client = openai.OpenAI(base_url=f"{url.rstrip('/')}/v1", api_key="none", timeout=60)
    try:
        model = sys.argv[3] if len(sys.argv) > 3 else client.models.list().data[0].id
        stream = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": question}], temperature=0, stream=True
        )
        for chunk in stream:
            for choice in chunk.choices:
                sys.stdout.write(choice.delta.content or "")
                sys.stdout.flush()
    except openai.OpenAIError as error:
        sys.stderr.write(f"{url} gave no answer: {error}\n")
        return 1
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
