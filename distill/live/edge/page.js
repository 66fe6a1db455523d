"use strict";
// Asks every second how the edge is. What cameras, classes and the cloud are called is text, never markup.

const EVERY_MS = 1000, PATIENCE_MS = 5000;
const at = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", {maximumSignificantDigits: 3});

function element(tag, name, ...inside) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...inside);
  return made;
}

function span(seconds) {
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= 2 * length) return `${Math.floor(seconds / length)} ${unit}`;
  }
  return `${Math.round(Math.max(0, seconds))} s`;
}

function clips(count) {
  return count === 1 ? "1 clip" : `${whole.format(count)} clips`;
}

function size(bytes) {
  if (bytes < 1e3) return `${bytes} B`;
  return bytes < 1e6 ? `${short.format(bytes / 1e3)} kB` : `${short.format(bytes / 1e6)} MB`;
}

// Figures stay where they are, and only their text changes: what somebody reads or selects does not jump.
function figures(list, rows) {
  if (list.childElementCount !== rows.length) {
    list.replaceChildren(...rows.map(() => element("div", "", element("dt"), element("dd"))));
  }
  rows.forEach(([name, value, some], place) => {
    const [term, number] = list.children[place].children;
    write(term, name);
    write(number, value);
    number.className = some ? "some" : "";
  });
}

function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function blank(name) {
  const head = element("div", "head", element("h3", "", name), element("span", "state"));
  const said = element("div", "said", element("span", "label"), element("span", "share"), element("time", "when"));
  const meter = element("meter");
  meter.setAttribute("aria-label", "Confidence");
  const source = element("p", "source");
  const made = element("li", "camera", element("div", "", head, source), element("p", "why"), element("div", "", said, meter), element("dl", "numbers"));
  made.dataset.name = name;
  return made;
}

function camera(node, state, seen, dropped, now, cloud) {
  const [sign, source, why, label, share, when, meter, numbers] =
    [".state", ".source", ".why", ".label", ".share", ".when", "meter", ".numbers"].map((which) => node.querySelector(which));
  sign.className = `state ${state.state}`;
  write(sign, state.state);
  write(source, /^\d+$/.test(seen.source) ? `webcam ${seen.source}` : seen.source);
  source.title = seen.source;
  write(why, state.why);
  why.hidden = !state.why;
  const told = seen.told;
  write(label, told ? told.label : "");
  label.hidden = !told;
  write(share, told ? `${Math.round(100 * told.confidence)} %` : cloud ? "nothing from the cloud yet" : "no cloud is asked");
  write(when, told ? `${span(now - told.captured)} ago` : "");
  meter.hidden = !told;
  meter.value = told ? told.confidence : 0;
  figures(numbers, [
    ["Frames/s", short.format(state.fps)],
    ["Frames", whole.format(state.frames)],
    ["Left out", whole.format(state.frames_dropped)],
    ["Clips", whole.format(state.clips)],
    ["Clips missed", whole.format(state.clips_dropped + dropped), state.clips_dropped + dropped > 0],
    ["Came back", `${whole.format(state.reconnects)} ×`],
  ]);
}

function show({edge, cameras, cloud, trouble, disk, dropped, refused}) {
  const list = at("cameras");
  if ([...list.children].map((node) => node.dataset.name).join("\n") !== edge.cameras.map((each) => each.name).join("\n")) {
    list.replaceChildren(...edge.cameras.map((each) => blank(each.name)));
  }
  edge.cameras.forEach((state, place) => camera(list.children[place], state, cameras[state.name], Object.hasOwn(dropped, state.name) ? dropped[state.name] : 0, edge.sent, cloud));
  figures(at("sending"), [
    ["Wait", clips(edge.spool_clips), edge.spool_clips > 0 && trouble],
    ["On the disk", size(edge.spool_bytes)],
    ["The oldest waits", edge.spool_clips ? span(edge.spool_seconds) : "–"],
    ["Arrived", clips(edge.sent_clips)],
    ["Send errors", whole.format(edge.send_errors)],
    ["Given up", clips(edge.spool_dropped), edge.spool_dropped > 0],
    ["Refused", clips(refused), refused > 0],
    ["Encoding a clip", `${short.format(edge.encode_ms)} ms`],
  ]);
  write(at("about"), cloud ? `sends to ${cloud}` : "keeps its clips; no cloud was named");
  write(at("box"), `${edge.model} · version ${edge.version} · up for ${span(edge.uptime_seconds)}`);
  const lost = edge.cameras.filter((each) => each.state === "lost").length;
  write(document.querySelector("title"), lost ? `(${lost} lost) Edge` : "Edge");
  troubles([trouble && ["", trouble], disk && ["bad", disk]]);
}

function troubles(lines) {
  const told = lines.filter(Boolean), list = at("troubles");
  if ([...list.children].map((node) => node.textContent).join("\n") === told.map(([, text]) => text).join("\n")) return;
  list.replaceChildren(...told.map(([kind, text]) => element("p", `trouble ${kind}`, text)));
}

async function ask() {
  try {
    const answer = await fetch("status", {signal: AbortSignal.timeout(PATIENCE_MS)});
    show(await answer.json());
    document.body.classList.remove("stale");
  } catch {
    document.body.classList.add("stale");
    troubles([["bad", "The edge does not answer. What stands here is old."]]);
  }
  setTimeout(ask, EVERY_MS);
}

ask();
