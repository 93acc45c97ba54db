// The chat page: a list of turns, one request at a time. No library, no build step, nothing from elsewhere.

import { Figures } from "./figures.js";
import { render } from "./markdown.js";
import * as settings from "./settings.js";
import { chat, get } from "./stream.js";

const $ = (id) => document.getElementById(id);
const log = $("log");
let turns = []; // { role, content, reasoning, node }
let running = null; // AbortController of the answer under way

class Turn {
  constructor(role, content = "") {
    Object.assign(this, { role, content, reasoning: "" });
    this.node = $("turn").content.firstElementChild.cloneNode(true);
    this.node.classList.add(role);
    this.part(".who").textContent = role === "user" ? "You" : "Assistant";
    this.show();
  }

  part(selector) {
    return this.node.querySelector(selector);
  }

  show() {
    const answer = this.part(".answer");
    if (this.role === "user") answer.textContent = this.content;
    else answer.replaceChildren(render(this.content));
    this.part(".reasoning").hidden = !this.reasoning;
    this.part(".reasoning .text").textContent = this.reasoning;
  }

  note(text) {
    this.part(".note").textContent = text;
    this.part(".note").hidden = !text;
  }

  offer(...actions) {
    this.part(".actions").replaceChildren(...actions.map(([name, run]) => button(name, run)));
  }

  get message() {
    return { role: this.role, content: this.content };
  }
}

function button(name, run) {
  const node = document.createElement("button");
  node.type = "button";
  node.textContent = name;
  node.addEventListener("click", () => run(node));
  return node;
}

function add(turn) {
  turns.push(turn);
  $("empty").hidden = true;
  log.append(turn.node);
  turn.node.scrollIntoView({ block: "end" });
}

function cut(length) {
  for (const turn of turns.splice(length)) turn.node.remove();
  $("empty").hidden = turns.length > 0;
}

function ask(content) {
  const turn = new Turn("user", content);
  turn.offer(["Copy", (node) => copy(node, turn)], ["Edit", () => edit(turn)]);
  add(turn);
  answer();
}

async function answer() {
  const turn = new Turn("assistant");
  const figures = new Figures();
  const body = { model: $("model").value, messages: messages(), ...settings.sampling() };
  add(turn);
  busy(turn, new AbortController());
  try {
    await figures.begin();
    const usage = await read(chat(body, { key: settings.key(), signal: running.signal }), turn, figures);
    $("figures").textContent = await figures.end(usage);
  } catch (error) {
    if (error.name === "AbortError") turn.note("Stopped.");
    else complain(error, turn);
  } finally {
    idle(turn);
  }
}

async function read(chunks, turn, figures) {
  let usage = null;
  const paint = painter(turn);
  for await (const chunk of chunks) {
    usage = chunk.usage ?? usage;
    const [choice] = chunk.choices;
    if (!choice) continue;
    turn.reasoning += choice.delta.reasoning_content ?? "";
    turn.content += choice.delta.content ?? "";
    if (choice.delta.content || choice.delta.reasoning_content) figures.chunk();
    if (choice.finish_reason === "length") turn.note("Cut off at the longest answer allowed.");
    paint();
  }
  turn.show();
  return usage;
}

// Shows a turn once a frame at most.
function painter(turn) {
  let wanted = false;
  return () => {
    if (wanted) return;
    wanted = true;
    requestAnimationFrame(() => {
      wanted = false;
      atEnd(() => turn.show());
    });
  };
}

// Stays at the end of the log while it grows, unless the person scrolled away from there.
function atEnd(change) {
  const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  change();
  if (follows) log.scrollTop = log.scrollHeight;
}

function messages() {
  const system = settings.system();
  return [...(system ? [{ role: "system", content: system }] : []), ...turns.map((turn) => turn.message)];
}

function busy(turn, controller) {
  running = controller;
  turn.node.setAttribute("aria-busy", "true");
  $("send").hidden = true;
  $("stop").hidden = false;
  complain(null);
}

function idle(turn) {
  running = null;
  turn.node.removeAttribute("aria-busy");
  const place = turns.indexOf(turn);
  atEnd(() => {
    turn.show();
    turn.offer(["Copy", (node) => copy(node, turn)], ["Retry", () => retry(place)]);
  });
  $("stop").hidden = true;
  $("send").hidden = false;
}

function retry(place) {
  if (running) return;
  cut(place);
  answer();
}

function edit(turn) {
  if (running) return;
  cut(turns.indexOf(turn));
  $("question").value = turn.content;
  $("question").focus();
}

async function copy(node, turn) {
  await navigator.clipboard.writeText(turn.content).catch(() => select(turn));
  node.textContent = "Copied";
  setTimeout(() => (node.textContent = "Copy"), 1500);
}

// Without a secure context there is no clipboard: leave the text selected, so that the keyboard can copy it.
function select(turn) {
  getSelection().selectAllChildren(turn.part(".answer"));
  document.execCommand("copy");
}

function complain(error, turn = null) {
  $("problem").hidden = !error;
  $("problem").textContent = error ? error.message : "";
  if (turn && !turn.content && !turn.reasoning) turn.note("No answer.");
}

async function loadModels() {
  try {
    const { data } = await (await get("v1/models", settings.key())).json();
    $("model").replaceChildren(...data.map(({ id }) => new Option(id, id)));
    $("model").disabled = data.length < 2;
    $("thinking-row").hidden = data[0]?.capabilities?.reasoning !== "switch";
    complain(null);
  } catch (error) {
    complain(error);
  }
}

function submit(event) {
  event?.preventDefault();
  const content = $("question").value.trim();
  if (!content || running) return;
  $("question").value = "";
  ask(content);
}

$("form").addEventListener("submit", submit);
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) running.abort();
  if (event.key === "n" && event.altKey) $("new").click();
});
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", () => {
  running?.abort();
  cut(0);
  $("question").focus();
});
$("open-settings").addEventListener("click", () => $("settings").showModal());
$("settings").addEventListener("close", () => {
  settings.save();
  loadModels();
});

settings.load();
loadModels();
$("question").focus();
