// The other charts, and what tells the values of any of them: a pointer, or the arrow keys.

const FADE_MS = 80;
const scrubbed = new WeakMap(); // plot -> {size, describe}
const told = { plot: null, place: 0 };

// A plot that is one stop of the Tab key; the arrows move through its bars.
function scrub(plot, describe) {
  scrubbed.set(plot, { size: 0, describe });
  plot.tabIndex = 0;
  plot.setAttribute("role", "slider");
  plot.setAttribute("aria-orientation", "horizontal");
  plot.setAttribute("aria-readonly", "true");
  plot.addEventListener("pointermove", (event) => tellAt(plot, event.clientX));
  plot.addEventListener("pointerdown", (event) => tellAt(plot, event.clientX));
  plot.addEventListener("pointerleave", hush);
  plot.addEventListener("focus", () => plot.matches(":focus-visible") && tell(plot, placeOf(plot)));
  plot.addEventListener("blur", hush);
  plot.addEventListener("keydown", steer);
}

function placeOf(plot) {
  return Number(plot.getAttribute("aria-valuenow"));
}

function scrubbable(plot, size, label) {
  const known = scrubbed.get(plot);
  if (known.size !== size) {
    known.size = size;
    flag(plot, "aria-valuemin", 0);
    flag(plot, "aria-valuemax", Math.max(0, size - 1));
    flag(plot, "aria-valuenow", Math.max(0, size - 1));
  }
  flag(plot, "aria-label", label);
  flag(plot, "aria-valuetext", inWords(known.describe(placeOf(plot))));
}

function inWords(description) {
  if (!description) return "";
  const lines = description.lines.map(({ label, value }) => `${label} ${value}`);
  return `${description.title}: ${lines.join(", ") || description.none}`;
}

// Many plots beneath each other are one stop; up and down move between them.
function oneStop() {
  const plots = [...$("lane-list").querySelectorAll(".plot")];
  const focused = plots.find((plot) => plot === document.activeElement);
  const current = focused ?? plots.find((plot) => plot.tabIndex === 0) ?? plots[0];
  for (const plot of plots) plot.tabIndex = plot === current ? 0 : -1;
}

function neighbour(plot, step) {
  const plots = [...$("lane-list").querySelectorAll(".plot")];
  return plots[plots.indexOf(plot) + step];
}

function steer(event) {
  const plot = event.currentTarget;
  const { size } = scrubbed.get(plot);
  const now = placeOf(plot);
  const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
  const step = steps[event.key];
  const other = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (event.key === "Escape") hush();
  if (step === undefined && other === undefined) return;
  event.preventDefault();
  if (step !== undefined) return tell(plot, Math.max(0, Math.min(size - 1, now + step)));
  const next = plot.closest("#lane-list") && neighbour(plot, other);
  if (!next) return;
  plot.tabIndex = -1;
  next.tabIndex = 0;
  next.setAttribute("aria-valuenow", now);
  next.focus({ focusVisible: true });
  tell(next, now);
}

function tellAt(plot, x) {
  const box = plot.getBoundingClientRect();
  const { size } = scrubbed.get(plot);
  tell(plot, Math.max(0, Math.min(size - 1, Math.floor(((x - box.left) / box.width) * size))));
}

function tell(plot, place) {
  if (told.plot && told.plot !== plot) hush();
  const { size, describe } = scrubbed.get(plot);
  const description = describe(place);
  if (!description || !size) return;
  told.plot = plot;
  told.place = place;
  flag(plot, "aria-valuenow", place);
  flag(plot, "aria-valuetext", inWords(description));
  const cursor = plot.querySelector(".cursor");
  cursor.style.left = `${(100 * place) / size}%`;
  cursor.style.width = `${100 / size}%`;
  plot.classList.add("told");
  showTip(plot, description, (place + 0.5) / size);
}

function retell() {
  if (told.plot?.isConnected) tell(told.plot, told.place);
  else hush();
}

function hush() {
  told.plot?.classList.remove("told");
  told.plot = null;
  $("tip").hidden = true;
}

function showTip(plot, { title, where, lines, none }, place) {
  const tip = $("tip");
  const shown = lines.slice(0, 10);
  const rest = lines.length - shown.length;
  tip.replaceChildren(
    element("b", title),
    ...(where ? [element("small", where)] : []),
    ...shown.map(tipLine),
    ...(rest ? [element("small", `and ${count(rest, "other")}`)] : []),
    ...(lines.length ? [] : [element("span", none)]),
  );
  tip.hidden = false;
  const box = plot.getBoundingClientRect();
  const room = document.documentElement.clientWidth;
  const left = box.left + box.width * place - tip.offsetWidth / 2;
  const above = box.top - tip.offsetHeight - 8;
  tip.style.left = `${Math.max(8, Math.min(room - tip.offsetWidth - 8, left))}px`;
  tip.style.top = `${above > 8 ? above : box.bottom + 8}px`;
}

function element(tag, text) {
  const node = document.createElement(tag);
  node.textContent = text;
  return node;
}

function tipLine({ slot, label, value }) {
  const line = document.createElement("p");
  const swatch = document.createElement("i");
  swatch.className = slot === undefined ? "swatch heat" : `swatch a${slot}`;
  line.append(swatch, element("span", label), element("b", value));
  return line;
}

function drawBars(list, entries, tell) {
  keyed(list, entries, (entry) => String(entry.slot), () => clone("t-bar"), (node, entry) => {
    const { value, count: small, part: long } = tell(entry);
    paint(part(node, "swatch"), entry.slot);
    paint(part(node, "bar"), entry.slot);
    fill(node, { label: entry.label, value, count: small });
    flag(node, "title", entry.label);
    share(part(node, "bar"), long);
  });
}

function drawShare(entries) {
  const total = entries.reduce((sum, entry) => sum + entry.count, 0);
  const most = Math.max(1, ...entries.map((entry) => entry.count));
  drawBars($("share"), entries, (entry) => ({
    value: percent(entry.count / total, 1),
    count: whole.format(entry.count),
    part: entry.count / most,
  }));
  $("share-none").hidden = Boolean(entries.length);
}

function drawMeans(entries) {
  drawBars($("means"), entries, (entry) => ({
    value: confidence(entry.sure / entry.count),
    count: "",
    part: entry.sure / entry.count,
  }));
  $("means-none").hidden = Boolean(entries.length);
}

const histogram = { bins: [] };

function drawHistogram(bins, total) {
  histogram.bins = bins;
  const top = Math.max(1, ...bins);
  const plot = $("histogram");
  const svg = plot.querySelector("svg");
  flag(svg, "viewBox", `0 0 ${bins.length} ${HEIGHT}`);
  const bars = bins.map((clips, place) => {
    const tall = (clips / top) * HEIGHT;
    return clips ? `M${place + 0.04} ${(HEIGHT - tall).toFixed(1)}h.92v${tall.toFixed(1)}h-.92z` : "";
  });
  flag(svg.firstElementChild, "d", bars.join(""));
  scrubbable(plot, bins.length, `Confidence of ${count(total, "clip")}`);
  say($("histogram-note"), total ? count(total, "clip") : "");
}

function describeBin(place) {
  const { bins } = histogram;
  const clips = bins[place] ?? 0;
  const title = `${percent(place / bins.length)} to ${percent((place + 1) / bins.length)}`;
  return { title, lines: clips ? [{ label: "clips", value: whole.format(clips) }] : [], none: "no clips" };
}

const STAGES = [
  ["encode", "Encoding", "the edge's model"],
  ["edge", "Edge", "last frame to sending"],
  ["network", "Network", "there and back"],
  ["cloud", "Cloud", "arrival to verdict"],
];
const RANKS = ["p50", "p90", "p99"];

// Milliseconds and hours on one scale: each decade is as wide as the next.
function drawLatency(latency) {
  const found = STAGES.flatMap(([name]) => RANKS.map((rank) => latency[name]?.[rank])).filter((value) => value > 0);
  const low = Math.floor(Math.log10(Math.min(1, ...found)) + 1e-9);
  const high = Math.max(low + 3, Math.ceil(Math.log10(Math.max(1, ...found)) - 1e-9));
  const place = (value) => (value > 0 ? Math.max(0.01, (Math.log10(value) - low) / (high - low)) : 0);
  keyed($("stages"), STAGES, ([name]) => name, () => clone("t-stage"), (node, [name, title, says]) => {
    fill(node, { name: title, says });
    for (const rank of RANKS) {
      const value = latency[name]?.[rank];
      say(part(node, rank), milliseconds(value));
      share(part(node, `${rank}-bar`), place(value));
    }
  });
  const step = Math.ceil((high - low) / 4);
  const decades = Array.from({ length: Math.floor((high - low) / step) + 1 }, (_, number) => low + number * step);
  keyed($("log-scale"), decades, String, () => document.createElement("span"), (node, decade) => {
    say(node, milliseconds(10 ** decade));
    node.style.left = `${(100 * (decade - low)) / (high - low)}%`;
    node.classList.toggle("first", decade === low);
    node.classList.toggle("last", decade === high);
  });
}
