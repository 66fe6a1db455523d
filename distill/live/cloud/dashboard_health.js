// How devices and cameras are.

const LEAST_SECONDS = 5; // that are worth a word
const SILENT_REPORTS = 3;
const SKEW_SECONDS = 2; // worth a warning
const MANY_CAMERAS = 40;

const health = {
  devices: [],
  asked: 0, // performance.now() of the answer
  age() {
    return (performance.now() - this.asked) / 1000;
  },
};

function silence(device) {
  return device.silent_seconds == null ? null : device.silent_seconds + health.age();
}

function isSilent(device) {
  if (!device.status) return false; // it has never said how it is, nor how often it would
  return silence(device) > SILENT_REPORTS * Math.max(LEAST_SECONDS, device.status.report_seconds ?? 0);
}

function deviceState(device) {
  if (device.seen == null) return ["never", "Never seen"];
  if (!device.status) return ["calm", "Sends clips only"];
  if (isSilent(device)) return ["bad", "Silent"];
  return ["good", "Reporting"];
}

function badge(node, [tone, text]) {
  flag(node, "data-tone", tone);
  say(node, text);
}

function skew(seconds) {
  if (seconds == null) return ["–"];
  const off = Math.abs(seconds);
  return [off < 1 ? "right" : `${lasting(off)} ${seconds > 0 ? "behind" : "ahead"}`, off > SKEW_SECONDS];
}

function deviceFacts({ status, skew_seconds }) {
  if (!status) return [];
  const { spool_clips, spool_bytes, spool_seconds, spool_dropped, send_errors, sent_clips } = status;
  return [
    ["Clips sent", whole.format(sent_clips)],
    ["Waiting", spool_clips ? `${count(spool_clips, "clip")}, ${size(spool_bytes)}` : "nothing"],
    ["Oldest waiting", spool_clips ? lasting(spool_seconds) : "–", spool_clips > 0 && spool_seconds > 60],
    ["Given up", count(spool_dropped, "clip"), spool_dropped > 0],
    ["Send errors", whole.format(send_errors), send_errors > 0],
    ["Clock", ...skew(skew_seconds)],
    ["Encoding", `${milliseconds(status.encode_ms)} a clip`],
    ["Running for", lasting(status.uptime_seconds)],
    ["Model", `${status.model}, distill ${status.version}`],
    ["Encoder", status.encoder],
  ];
}

const TONES = { running: "good", starting: "calm", lost: "bad", ended: "calm" };
const STATES = { running: "Running", starting: "Starting", lost: "Lost", ended: "Ended" };

function drawCamera(node, camera) {
  const { status } = camera;
  const number = (name) => (status ? whole.format(status[name]) : "–");
  fill(node, {
    name: camera.name,
    why: status?.why ?? "",
    fps: status ? status.fps.toFixed(1) : "–",
    "frames-dropped": number("frames_dropped"),
    "clips-dropped": number("clips_dropped"),
    reconnects: number("reconnects"),
    label: camera.label ?? "none yet",
  });
  for (const cell of node.querySelectorAll(".number")) cell.classList.toggle("zero", /^[0–]$/.test(cell.textContent));
}

function drawFact(node, [name, value, warn]) {
  fill(node, { name, value: warn ? `⚠ ${value}` : value });
  flag(node, "data-warn", Boolean(warn));
  flag(node, "title", value);
}

function drawDevice(node, device) {
  say(part(node, "name"), device.name);
  keyed(part(node, "facts"), deviceFacts(device), ([name]) => name, () => clone("t-fact"), drawFact);
  const cameras = device.cameras.filter(inView);
  cameras.sort((one, other) => byName(one.name, other.name));
  keyed(part(node, "cameras"), cameras, ({ name }) => name, () => clone("t-camera"), drawCamera);
  say(part(node, "tally"), tally(cameras));
  part(node, "more").hidden = !cameras.length;
  part(node, "none").hidden = Boolean(cameras.length);
}

function tally(cameras) {
  const states = Map.groupBy(cameras, ({ status }) => (status ? STATES[status.state].toLowerCase() : "unknown"));
  const parts = [...states].map(([state, some]) => `${some.length} ${state}`);
  return `${count(cameras.length, "camera")}: ${parts.join(", ")}`;
}

// With very many cameras only a line for each device; whoever opens one finds it open from then on.
function newDevice() {
  const node = clone("t-device");
  part(node, "more").open = health.devices.flatMap(({ cameras }) => cameras).length <= MANY_CAMERAS;
  return node;
}

function takeDevices(devices) {
  health.devices = devices.sort((one, other) => byName(one.name, other.name));
  health.asked = performance.now();
}

function shownDevices() {
  const ours = ({ name, cameras }) =>
    (!view.device || name === view.device) && (!view.camera || cameras.some((camera) => camera.name === view.camera));
  return health.devices.filter(ours);
}

function drawHealth() {
  const devices = shownDevices();
  keyed($("devices"), devices, ({ name }) => name, newDevice, drawDevice);
  const none = "No device has a key yet. Make one: distill cloud devices recipe=cloud add=box1";
  say($("health-note"), devices.length ? "" : none);
  drawAges();
}

// What changes from second to second, without asking the service again.
function drawAges() {
  const nodes = new Map(Array.from($("devices").children, (node) => [node.dataset.key, node]));
  for (const device of shownDevices()) {
    const node = nodes.get(device.name);
    if (!node) continue;
    badge(part(node, "badge"), deviceState(device));
    node.classList.toggle("silent", isSilent(device));
    const seconds = silence(device);
    say(part(node, "seen"), seconds == null ? "it has a key and was never heard of" : `seen ${ago(seconds)}`);
    drawCameraStates(part(node, "cameras"), device);
  }
  drawCounts();
}

function drawCameraStates(body, device) {
  const now = device.seen + silence(device);
  const known = new Map(device.cameras.map((camera) => [camera.name, camera]));
  for (const row of body.children) {
    const { seen, status, confidence: sure } = known.get(row.dataset.key) ?? {};
    badge(part(row, "state"), cameraState(status, isSilent(device)));
    say(part(row, "ago"), seen == null ? "" : `${confidence(sure)}, ${ago(Math.max(0, now - seen))}`);
  }
}

// What a silent device said last may not be so any more.
function cameraState(status, silent) {
  if (!status) return ["never", "Unknown"];
  const state = STATES[status.state];
  return silent ? ["calm", `Was ${state.toLowerCase()}`] : [TONES[status.state], state];
}

function drawCounts() {
  const devices = shownDevices();
  const cameras = devices.flatMap((device) => device.cameras.filter(inView));
  const silent = devices.filter(isSilent).length;
  const lost = cameras.filter(({ status }) => status?.state === "lost").length;
  say($("device-count"), whole.format(devices.length));
  say($("device-remark"), silent ? `⚠ ${silent} silent` : "");
  say($("camera-count"), whole.format(cameras.length));
  say($("camera-remark"), lost ? `⚠ ${lost} lost` : "");
}
