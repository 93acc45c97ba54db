// What the person chose. All of it outlives the tab but the API key, which ends with it.

const FIELDS = ["system", "temperature", "top_p", "max_tokens", "seed", "thinking", "theme"];
const STORE = "chat-settings";
const $ = (id) => document.getElementById(id);

export function load() {
  const saved = JSON.parse(localStorage.getItem(STORE) ?? "{}");
  for (const name of FIELDS) if (name in saved) write($(name), saved[name]);
  $("key").value = sessionStorage.getItem("key") ?? "";
  apply();
}

export function save() {
  localStorage.setItem(STORE, JSON.stringify(Object.fromEntries(FIELDS.map((name) => [name, read($(name))]))));
  sessionStorage.setItem("key", $("key").value.trim());
  apply();
}

export const key = () => sessionStorage.getItem("key") ?? "";

// The part of a request's body that does not depend on the conversation. Empty fields are the server's to choose.
export function sampling() {
  const body = {};
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if ($(name).value !== "") body[name] = $(name).valueAsNumber;
  }
  if (!$("thinking-row").hidden) body.chat_template_kwargs = { thinking: $("thinking").checked };
  return body;
}

export const system = () => $("system").value.trim();

function apply() {
  document.documentElement.dataset.theme = $("theme").value;
}

const read = (field) => (field.type === "checkbox" ? field.checked : field.value);

function write(field, value) {
  if (field.type === "checkbox") field.checked = Boolean(value);
  else field.value = value;
}
