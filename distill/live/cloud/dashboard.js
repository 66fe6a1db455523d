// The page: what is chosen, when the service is asked, and what is drawn then.

const SPANS = [
  { name: "15m", title: "15 min", seconds: 900, bucket: 30, every: 5 },
  { name: "1h", title: "1 h", seconds: 3600, bucket: 60, every: 5 },
  { name: "6h", title: "6 h", seconds: 21_600, bucket: 300, every: 15 },
  { name: "24h", title: "24 h", seconds: 86_400, bucket: 1200, every: 30 },
  { name: "7d", title: "7 days", seconds: 604_800, bucket: 7200, every: 60 },
];
const BUSY = 20; // a question is asked again after so many times what its answer took, at the earliest
const THEME = "distill-theme";

const view = { span: SPANS[1], device: "", camera: "", label: "" };
let session = null; // AbortController of everything that runs with the key
const polling = { timer: 0, asked: null };
let shown = null; // the summary that is drawn

function filters() {
  return { device: view.device, camera: view.camera, label: view.label };
}

// Ends at a whole bucket, so that a bar's clips do not change from question to question.
function chosenTime() {
  const { seconds, bucket } = view.span;
  const until = Math.ceil(clock.now() / bucket + 1e-9) * bucket;
  return { since: until - seconds, until };
}

async function poll() {
  const signal = session?.signal;
  if (!signal || document.hidden) return;
  clearTimeout(polling.timer);
  polling.asked?.abort();
  const asked = new AbortController();
  polling.asked = asked;
  const began = performance.now();
  try {
    await refresh(AbortSignal.any([signal, asked.signal]));
  } catch (error) {
    troubled(error, asked.signal);
  } finally {
    const rest = Math.max(1000 * view.span.every, BUSY * (performance.now() - began));
    if (!signal.aborted && !asked.signal.aborted) polling.timer = setTimeout(poll, rest);
  }
}

async function refresh(signal) {
  const values = { ...chosenTime(), bucket: view.span.bucket, ...filters() };
  const [{ devices }, summary] = await Promise.all([ask("v1/cameras", {}, signal), ask("v1/summary", values, signal)]);
  const total = summary.counts.reduce((sum, { count }) => sum + count, 0);
  shown = { ...summary, since: values.since, until: values.until, total };
  $("charts").classList.remove("busy");
  takeDevices(devices);
  showTrouble("");
  draw();
  if (live.lacking) refill(session.signal);
}

// What could not be fetched is fetched when the service answers again.
function refill(signal) {
  live.lacking = false;
  refilter(signal).catch((error) => {
    live.lacking = true;
    troubled(error, signal);
  });
}

function troubled(error, signal) {
  if (signal.aborted || session?.signal.aborted) return;
  if (error.locked) return lock(error);
  if (!(error instanceof Refused || error instanceof Unreachable)) throw error;
  return showTrouble(`${error.message} What is shown may be old.`);
}

function draw() {
  if (!view.label || palette.slots.size < COLOURS) palette.update(totals(shown.counts));
  const entries = ranking(shown.counts);
  say($("clip-count"), whole.format(shown.total));
  say($("clip-remark"), `in ${view.span.title}`);
  drawEmpty();
  drawLegend(entries, draw);
  drawLanes(shown, shownCameras());
  drawShare(entries);
  drawMeans(entries);
  drawHistogram(shown.confidence, shown.total);
  drawLatency(shown.latency_ms);
  drawHealth();
  drawCameraChoice();
  repaintRows();
}

function shownCameras() {
  return shownDevices().flatMap((device) => device.cameras.filter(inView).map(({ name }) => [device.name, name]));
}

function inView({ name }) {
  return !view.camera || name === view.camera;
}

function totals(counts) {
  const found = new Map();
  for (const { label, count } of counts) found.set(label, (found.get(label) ?? 0) + count);
  return found;
}

// Nothing was ever sent: the charts have nothing to say, but somebody has something to do.
function drawEmpty() {
  const never = live.last === 0 && !shown?.total;
  $("empty").hidden = !never;
  $("charts").hidden = never;
}

function drawSpans() {
  for (const span of SPANS) {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "span", value: span.name });
    input.checked = span === view.span;
    input.addEventListener("change", () => choose({ span }));
    label.append(input, element("span", span.title));
    $("spans").append(label);
  }
}

function choiceValue(device, camera) {
  return device ? cameraKey(device, camera) : "";
}

function drawCameraChoice() {
  const select = $("cameras");
  const chosen = choiceValue(view.device, view.camera);
  const groups = cameraGroups();
  const signature = JSON.stringify(groups);
  if (select.dataset.signature !== signature) {
    select.dataset.signature = signature;
    select.replaceChildren(new Option("All cameras", ""), ...groups.map(choiceGroup));
  }
  select.value = chosen;
}

// What is chosen can be chosen, even if the service does not name it any more.
function cameraGroups() {
  const groups = new Map(health.devices.map(({ name, cameras }) => [name, new Set(cameras.map((one) => one.name))]));
  if (view.device && !groups.has(view.device)) groups.set(view.device, new Set());
  if (view.camera) groups.get(view.device).add(view.camera);
  return [...groups].map(([device, cameras]) => [device, [...cameras].sort(byName)]);
}

function choiceGroup([device, cameras]) {
  const group = document.createElement("optgroup");
  group.label = device;
  group.append(new Option(`All of ${device}`, choiceValue(device, "")));
  for (const camera of cameras) group.append(new Option(camera, choiceValue(device, camera)));
  return group;
}

// What the classifier knows; what is chosen stays a choice, even if the classifier is another one by now.
function drawActionChoice(classes) {
  const labels = [...new Set(view.label ? [...classes, view.label] : classes)].sort(byName);
  $("actions").replaceChildren(new Option("All actions", ""), ...labels.map((label) => new Option(label, label)));
  $("actions").value = view.label;
}

function choose(change) {
  const filtered = !("span" in change);
  Object.assign(view, change);
  writeAddress();
  hush();
  if (!session) return;
  $("charts").classList.add("busy");
  if (filtered) refill(session.signal);
  poll();
}

// A reload, a bookmark or a link shows the same.
function writeAddress() {
  const values = { span: view.span.name, ...filters() };
  history.replaceState(null, "", address(location.pathname, values));
}

function readAddress() {
  const values = new URLSearchParams(location.search);
  view.span = SPANS.find(({ name }) => name === values.get("span")) ?? view.span;
  view.device = values.get("device") ?? "";
  view.camera = view.device ? (values.get("camera") ?? "") : "";
  view.label = values.get("label") ?? "";
}

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  $("theme").value = theme;
  localStorage.setItem(THEME, theme);
}

function lock(error) {
  if (!session) return; // two questions may be refused at once
  session.abort();
  session = null;
  clearTimeout(polling.timer);
  const why = whyLocked(error);
  key.forget();
  showGate(why);
}

function signOut() {
  lock(new Refused(0, ""));
  location.reload(); // what was shown leaves the tab's memory, too
}

// The first question tells whether the key is good; only then is anything shown.
async function open() {
  session?.abort();
  const own = new AbortController();
  session = own;
  for (;;) {
    const error = await enter(own.signal).then(() => null, (error) => error);
    if (!error || own.signal.aborted) return;
    if (error.locked) return lock(error);
    showLink("offline");
    showTrouble(error.message);
    await sleep(2000, own.signal);
  }
}

async function enter(signal) {
  const classifier = await ask("v1/classifier", {}, signal);
  showTrouble("");
  palette.learn(classifier.classes);
  drawActionChoice(classifier.classes);
  showClassifier(classifier);
  showApp();
  follow({ begin: beginLive, take: takeEvent, state: showLink, locked: lock }, signal);
  poll();
}

async function exportShown(button) {
  const window = shown ? { since: shown.since, until: shown.until } : chosenTime();
  button.disabled = true;
  const { signal } = session;
  await download(button.dataset.format, { ...filters(), ...window }).catch((error) => troubled(error, signal));
  button.disabled = false;
  button.focus();
}

function listen() {
  $("sign-in").addEventListener("submit", (event) => {
    event.preventDefault();
    key.set($("key").value.trim());
    open();
  });
  $("sign-out").addEventListener("click", signOut);
  $("theme").addEventListener("change", () => setTheme($("theme").value));
  $("pause").addEventListener("click", pause);
  $("cameras").addEventListener("change", () => {
    const [device = "", camera = ""] = JSON.parse($("cameras").value || "[]");
    choose({ device, camera });
  });
  $("actions").addEventListener("change", () => choose({ label: $("actions").value }));
  $("more-lanes").addEventListener("click", () => {
    lanes.all = !lanes.all;
    draw();
  });
  for (const button of document.querySelectorAll("[data-format]")) {
    button.addEventListener("click", () => exportShown(button));
  }
  window.addEventListener("hashchange", () => key.takeFromAddress() && open());
  document.addEventListener("visibilitychange", poll);
  setInterval(() => shown && session && !document.hidden && drawAges(), 1000);
}

function start() {
  key.takeFromAddress();
  readAddress();
  setTheme(localStorage.getItem(THEME) ?? "auto");
  drawSpans();
  scrub($("histogram"), describeBin);
  const command = "DISTILL_KEY=KEY distill edge model=runs/quickstart/distilled cameras.door=0";
  say($("edge-command"), `${command} cloud=${location.origin}`);
  listen();
  open();
}

start();
