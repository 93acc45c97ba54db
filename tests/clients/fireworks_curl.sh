#!/usr/bin/env bash
# The request that Fireworks' documentation prints for DeepSeek-V3, top_k and all, with a question filled in.
set -euo pipefail

answer=$(curl --silent --show-error --fail --request POST \
  --url "$OPENAI_BASE_URL/chat/completions" \
  -H 'Accept: application/json' \
  -H 'Content-Type: application/json' \
  -H 'Authorization: Bearer none' \
  --data '{
  "model": "accounts/fireworks/models/deepseek-v3",
  "max_tokens": 16384,
  "top_p": 1,
  "top_k": 40,
  "presence_penalty": 0,
  "frequency_penalty": 0,
  "temperature": 0.6,
  "messages": [{"role": "user", "content": "What is 12 plus 30?"}]
}')
grep -q '"finish_reason":"stop"' <<<"$answer" || { echo "no whole answer: $answer" >&2; exit 1; }
grep -q '42' <<<"$answer" || { echo "a wrong answer: $answer" >&2; exit 1; }
