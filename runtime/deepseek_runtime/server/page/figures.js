// Tokens a second of the answer under way, and what share of the drafted tokens the model accepted meanwhile.

const DRAFTED = /^dsv3_spec_decode_num_draft_tokens_total\{[^}]*\} (\S+)$/gm;
const ACCEPTED = /^dsv3_spec_decode_num_accepted_tokens_total\{[^}]*\} (\S+)$/gm;

export class Figures {
  #first = 0;
  #last = 0;
  #before = null;
  tokens = 0;

  async begin() {
    this.#before = await drafts();
  }

  chunk() {
    this.#last = performance.now();
    this.#first ||= this.#last;
  }

  // `tokens` are those of the server's usage. The first one is waited for and not timed.
  async end(usage) {
    this.tokens = usage?.completion_tokens ?? 0;
    const parts = [`${this.tokens} tokens`];
    const seconds = (this.#last - this.#first) / 1000;
    if (this.tokens > 1 && seconds > 0) parts.push(`${((this.tokens - 1) / seconds).toFixed(1)} tokens/s`);
    const after = await drafts();
    const drafted = (after?.drafted ?? 0) - (this.#before?.drafted ?? 0);
    if (drafted > 0) parts.push(`MTP ${Math.round((100 * (after.accepted - this.#before.accepted)) / drafted)} % accepted`);
    return parts.join(" · ");
  }
}

// Counters of the whole server; null where its metrics cannot be read.
async function drafts() {
  const response = await fetch("metrics").catch(() => null);
  if (!response?.ok) return null;
  const text = await response.text();
  const sum = (pattern) => [...text.matchAll(pattern)].reduce((total, match) => total + Number(match[1]), 0);
  return { drafted: sum(DRAFTED), accepted: sum(ACCEPTED) };
}
