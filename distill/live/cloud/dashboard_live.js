// The newest predictions: a bounded table of them.

const ROWS = 100;
const BATCH_MS = 200; // a hundred predictions a second are five drawings a second
const FAR_BEHIND = 2000; // predictions; beyond, those that would be shown anyway are fetched at once

const live = {
  last: null, // id of the last prediction that came, of whatever camera
  recent: [], // the newest that pass the filter, newest first
  waiting: [], // came since the last drawing, oldest first
  held: 0, // came while paused
  lacking: false, // older ones that pass the filter could not be fetched
  paused: false,
};

function passes(prediction) {
  return Object.entries(filters()).every(([name, wanted]) => !wanted || prediction[name] === wanted);
}

// Where to listen from. After a long sleep, or where the service began anew, the table is fetched afresh instead.
async function beginLive(signal) {
  const { predictions } = await ask("v1/predictions", { limit: 1, order: "newest" }, signal);
  const newest = predictions[0]?.id ?? 0;
  if (live.last === null || newest < live.last || newest - live.last > FAR_BEHIND) await fetchRecent(newest, signal);
  return live.last;
}

async function fetchRecent(newest, signal) {
  live.recent = await older(newest, signal);
  live.last = newest;
  live.waiting = [];
  live.held = 0;
  redrawRows();
  drawEmpty();
}

// Up to this one, as the filter is when the answer is there: it may have been changed meanwhile.
async function older(last, signal) {
  for (;;) {
    const chosen = filters();
    const values = { ...chosen, order: "newest", before: last + 1, limit: ROWS };
    const { predictions } = await ask("v1/predictions", values, signal);
    if (address("", chosen) === address("", filters())) return predictions;
  }
}

// Another filter: what is older is fetched, what comes meanwhile is taken as always.
async function refilter(signal) {
  live.recent = [];
  live.waiting = [];
  live.held = 0;
  redrawRows();
  if (live.last === null) return;
  const predictions = await older(live.last, signal);
  const first = live.recent.at(-1)?.id ?? live.waiting[0]?.id ?? Infinity;
  live.recent = [...live.recent, ...predictions.filter(({ id }) => id < first)].slice(0, ROWS);
  redrawRows();
}

function takeEvent({ type, data }) {
  if (type !== "predictions") return;
  const fresh = JSON.parse(data).filter(({ id }) => id > live.last);
  if (!fresh.length) return;
  live.last = fresh.at(-1).id;
  const ours = fresh.filter(passes);
  live.waiting = [...live.waiting, ...ours].slice(-ROWS);
  if (live.paused) {
    live.held += ours.length;
    sayPause();
  } else drawSoon();
  if (!$("empty").hidden) poll();
}

let drawing = 0;
function drawSoon() {
  drawing ||= setTimeout(() => {
    drawing = 0;
    requestAnimationFrame(drawWaiting);
    // A hidden page draws no frames; its memory stays bounded all the same.
    if (document.hidden) drawWaiting();
  }, BATCH_MS);
}

function drawWaiting() {
  if (live.paused || !live.waiting.length) return;
  const fresh = live.waiting.reverse();
  live.waiting = [];
  live.held = 0;
  live.recent = [...fresh, ...live.recent].slice(0, ROWS);
  const body = $("rows");
  const nodes = fresh.map(newRow);
  for (const node of nodes) node.classList.add("fresh");
  body.prepend(...nodes);
  while (body.childElementCount > ROWS) body.lastElementChild.remove();
  $("rows-none").hidden = true;
}

function redrawRows() {
  $("rows").replaceChildren(...live.recent.map(newRow));
  $("rows-none").hidden = Boolean(live.recent.length);
  sayPause();
}

// Colours may have changed hands since a row was written.
function repaintRows() {
  const rows = $("rows").children;
  for (let place = 0; place < rows.length; place += 1) {
    const label = part(rows[place], "label").textContent;
    paint(part(rows[place], "swatch"), palette.slot(label));
  }
}

function newRow(prediction) {
  const { id, captured, camera, device, label, confidence: sure, edge_ms, network_ms, cloud_ms } = prediction;
  const node = clone("t-row");
  node.dataset.id = id;
  fill(node, {
    time: moment(captured),
    camera,
    device,
    label,
    confidence: confidence(sure),
    latency: milliseconds(edge_ms + (network_ms ?? 0) + cloud_ms),
    stages: [edge_ms, network_ms, cloud_ms].map(brief).join(" + "),
  });
  paint(part(node, "swatch"), palette.slot(label));
  share(part(node, "bar"), sure);
  return node;
}

function brief(value) {
  return value == null ? "?" : value >= 1000 ? lasting(value / 1000) : String(Math.round(value));
}

function sayPause() {
  const more = live.held ? ` (${whole.format(live.held)} new)` : "";
  say($("pause"), live.paused ? `Resume${more}` : "Pause");
  flag($("pause"), "aria-pressed", live.paused);
}

function pause() {
  live.paused = !live.paused;
  if (!live.paused) drawSoon();
  if (!live.paused) live.held = 0;
  sayPause();
}
