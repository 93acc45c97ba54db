// The little Markdown that models write, as DOM nodes. Text is only ever put into text nodes, so whatever HTML an answer
// holds is shown and never run.

export function render(source) {
  const fragment = document.createDocumentFragment();
  let lines = source.split("\n");
  while (lines.length) {
    const block = BLOCKS.find(({ starts }) => starts.test(lines[0]));
    const count = block.length(lines);
    const node = block.build(lines.slice(0, count));
    if (node) fragment.append(node);
    lines = lines.slice(count);
  }
  return fragment;
}

const FENCE = /^\s*(```|~~~)/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const BULLET = /^\s*[-*+]\s+/;
const NUMBER = /^\s*\d+[.)]\s+/;
const BLANK = /^\s*$/;
const INLINE = /(`+)([\s\S]+?)\1|\*\*([^*]+)\*\*|\*([^*\s][^*]*)\*/g;

const while_ = (test) => (lines) => {
  const end = lines.findIndex((line, index) => index > 0 && !test(line));
  return end < 0 ? lines.length : end;
};

// The first whose `starts` fits takes `length` lines; the last one takes what no other wants.
const BLOCKS = [
  { starts: BLANK, length: () => 1, build: () => null },
  { starts: FENCE, length: fenced, build: code },
  { starts: HEADING, length: () => 1, build: ([line]) => heading(line) },
  { starts: BULLET, length: while_((line) => BULLET.test(line)), build: (lines) => list("ul", lines, BULLET) },
  { starts: NUMBER, length: while_((line) => NUMBER.test(line)), build: (lines) => list("ol", lines, NUMBER) },
  {
    starts: /^/,
    length: while_((line) => ![BLANK, FENCE, HEADING, BULLET, NUMBER].some((start) => start.test(line))),
    build: (lines) => element("p", lines.join("\n")),
  },
];

function fenced(lines) {
  const fence = FENCE.exec(lines[0])[1];
  const end = lines.findIndex((line, index) => index > 0 && line.trim().startsWith(fence));
  return end < 0 ? lines.length : end + 1;
}

function code(lines) {
  const fence = FENCE.exec(lines[0])[1];
  const closed = lines.length > 1 && lines.at(-1).trim().startsWith(fence);
  const block = document.createElement("pre");
  const inner = document.createElement("code");
  inner.textContent = lines.slice(1, closed ? -1 : undefined).join("\n");
  block.tabIndex = 0;
  block.append(inner);
  return block;
}

function heading(line) {
  const [, marks, text] = HEADING.exec(line);
  return element(`h${Math.min(marks.length + 2, 6)}`, text);
}

function list(name, lines, marker) {
  const node = document.createElement(name);
  if (name === "ol") node.start = Number.parseInt(lines[0], 10);
  node.append(...lines.map((line) => element("li", line.replace(marker, ""))));
  return node;
}

function element(name, text) {
  const node = document.createElement(name);
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    node.append(text.slice(end, match.index));
    const [, ticks, verbatim, strong, emphasis] = match;
    const inner = document.createElement(ticks ? "code" : strong ? "strong" : "em");
    inner.textContent = verbatim ?? strong ?? emphasis;
    node.append(inner);
    end = match.index + match[0].length;
  }
  node.append(text.slice(end));
  return node;
}
