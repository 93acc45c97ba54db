// Server-sent events of the chat API, as an async iterator of chunks. Errors of both kinds, before the first event and
// in the middle, are thrown with the sentence that the server gave.

export class ApiError extends Error {}

export async function* chat(body, { key, signal }) {
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...authorization(key) },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.ok) throw new ApiError(await sentence(response));
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message);
    yield chunk;
  }
  throw new ApiError("The connection ended in the middle of the answer.");
}

export async function get(path, key) {
  const response = await fetch(path, { headers: authorization(key) });
  if (!response.ok) throw new ApiError(await sentence(response));
  return response;
}

// The `data` of each event. Comments, which keep the connection alive, are skipped.
export async function* events(stream) {
  let rest = "";
  for await (const text of texts(stream)) {
    const lines = (rest + text).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}

async function* texts(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
  } finally {
    reader.cancel().catch(() => {});
  }
}

function authorization(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function sentence(response) {
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `The server answered ${response.status} ${response.statusText}.`;
}
