// Elements and words. Text from the service reaches the page as text alone.

const NBSP = "\u00a0"; // a number and its unit stay on one line
const $ = (id) => document.getElementById(id);
const OFFSET_WORTH_IT = 5; // seconds between the viewer's clock and the service's

function clone(template) {
  return $(template).content.firstElementChild.cloneNode(true);
}

function part(node, name) {
  return node.querySelector(`[data-part="${name}"]`);
}

// Writing the same text again would still cost a layout.
function say(node, text) {
  const said = String(text ?? "");
  if (node.textContent !== said) node.textContent = said;
}

function fill(node, texts) {
  for (const [name, text] of Object.entries(texts)) say(part(node, name), text);
}

function flag(node, name, value) {
  if (node.getAttribute(name) === String(value)) return;
  node.setAttribute(name, value);
}

function share(node, part) {
  node.style.setProperty("--share", Math.max(0, Math.min(1, part || 0)).toFixed(4));
}

// One child for each item, kept for as long as its key is; what is focused or selected in it stays so.
function keyed(parent, items, keyOf, create, update) {
  const left = new Map(Array.from(parent.children, (node) => [node.dataset.key, node]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    const node = left.get(key) ?? create(item);
    left.delete(key);
    node.dataset.key = key;
    update(node, item);
    if (node === place) place = place.nextElementSibling;
    else parent.insertBefore(node, place);
  }
  for (const node of left.values()) node.remove();
}

// The service's time, as far as a header in whole seconds tells; the viewer's clock may be anything.
const clock = {
  offset: 0,
  heard(header) {
    const there = Date.parse(header ?? "") / 1000;
    const offset = there - Date.now() / 1000;
    if (Number.isFinite(offset)) this.offset = Math.abs(offset) > OFFSET_WORTH_IT ? offset : 0;
  },
  now() {
    return Date.now() / 1000 + this.offset;
  },
};

const whole = new Intl.NumberFormat("en");
const formats = {
  time: new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" }),
  minute: new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" }),
  day: new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" }),
  weekday: new Intl.DateTimeFormat("en-GB", { weekday: "short", day: "numeric" }),
};

function when(seconds, format) {
  return formats[format].format(new Date(seconds * 1000));
}

function sameDay(one, other) {
  return new Date(one * 1000).toDateString() === new Date(other * 1000).toDateString();
}

function moment(seconds) {
  const time = when(seconds, "time");
  return sameDay(seconds, clock.now()) ? time : `${when(seconds, "day")} ${time}`;
}

function between(from, to) {
  const day = sameDay(from, clock.now()) ? "" : `${when(from, "day")} `;
  const format = (to - from) % 60 ? "time" : "minute";
  return `${day}${when(from, format)} to ${when(to, format)}`;
}

function count(number, one, many = `${one}s`) {
  return `${whole.format(number)} ${number === 1 ? one : many}`;
}

function percent(part, digits = 0) {
  return `${(100 * part).toFixed(digits)}${NBSP}%`;
}

// Rounded, but never to more than it is: 99.96 % is not certain.
function confidence(value) {
  return percent(value >= 1 ? 1 : Math.min(value, 0.999), 1);
}

function milliseconds(value) {
  if (value == null) return "–";
  if (value >= 1000) return lasting(value / 1000);
  return `${value < 10 ? value.toFixed(1) : Math.round(value)}${NBSP}ms`;
}

function lasting(seconds) {
  if (seconds < 10) return `${Number(seconds.toFixed(1))}${NBSP}s`;
  if (seconds < 100) return `${Math.round(seconds)}${NBSP}s`;
  if (seconds < 6000) return `${Math.round(seconds / 60)}${NBSP}min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)}${NBSP}h`;
  return `${Math.round(seconds / 86400)}${NBSP}days`;
}

function ago(seconds) {
  return seconds < 1 ? "now" : `${lasting(Math.floor(seconds))} ago`;
}

function size(bytes) {
  return bytes < 1e6 ? `${Math.ceil(bytes / 1e3)}${NBSP}kB` : `${(bytes / 1e6).toFixed(1)}${NBSP}MB`;
}

const byName = new Intl.Collator(undefined, { numeric: true }).compare;
