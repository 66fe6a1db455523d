// Actions over time: a lane for each camera, a bar for each bucket of time, a colour for each action.

const HEIGHT = 1000; // of a lane, in the units of its picture
const BAR = 0.82; // of a bucket's width
const FIRST_LANES = 20;
const TICK_WIDTH = 44; // pixels of its words
const SVG = "http://www.w3.org/2000/svg";

const lanes = { data: null, only: null, all: false };

function cameraKey(device, camera) {
  return JSON.stringify([device, camera]);
}

// What the service counted, as lanes: bars[bucket][slot] clips; names[bucket] the actions of a bucket.
function layLanes(summary, cameras) {
  const size = Math.round((summary.until - summary.since) / summary.bucket);
  const found = new Map();
  for (const [device, camera] of cameras) found.set(cameraKey(device, camera), emptyLane(device, camera, size));
  for (const { start, device, camera, label, count } of summary.counts) {
    const name = cameraKey(device, camera);
    if (!found.has(name)) found.set(name, emptyLane(device, camera, size));
    const place = Math.floor((start - summary.since) / summary.bucket + 1e-6);
    if (place >= 0 && place < size) addBar(found.get(name), place, label, count);
  }
  const order = (one, other) => byName(one.device, other.device) || byName(one.camera, other.camera);
  const list = [...found.values()].sort(order);
  const most = list.map((lane) => lane.bars.reduce((top, bar) => Math.max(top, bar?.total ?? 0), 0));
  return { list, size, since: summary.since, bucket: summary.bucket, top: Math.max(1, ...most) };
}

function emptyLane(device, camera, size) {
  return { device, camera, total: 0, bars: new Array(size).fill(null) };
}

function addBar(lane, place, label, count) {
  lane.bars[place] ??= { total: 0, slots: new Array(COLOURS + 1).fill(0), labels: [] };
  const bar = lane.bars[place];
  bar.total += count;
  bar.slots[palette.slot(label)] += count;
  bar.labels.push([label, count]);
  lane.total += count;
}

// One path for each colour, however many bars: a hundred lanes stay cheap.
function lanePaths(lane, top) {
  const paths = new Array(COLOURS + 1).fill("");
  lane.bars.forEach((bar, place) => {
    if (!bar) return;
    let floor = HEIGHT;
    bar.slots.forEach((count, slot) => {
      if (!count) return;
      const tall = (count / top) * HEIGHT;
      floor -= tall;
      paths[slot] += `M${place + (1 - BAR) / 2} ${floor.toFixed(1)}h${BAR}v${tall.toFixed(1)}h-${BAR}z`;
    });
  });
  return paths;
}

function newLane() {
  const node = clone("t-lane");
  const svg = part(node, "svg");
  for (let slot = 0; slot <= OTHER; slot += 1) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", `a${slot}`);
    svg.append(path);
  }
  scrub(part(node, "plot"), (place) => describeBucket(node.dataset.key, place));
  return node;
}

function drawLane(node, lane) {
  const { size, top } = lanes.data;
  fill(node, { camera: lane.camera, device: lane.device, total: whole.format(lane.total) });
  flag(node, "title", `${lane.camera} of ${lane.device}`);
  const svg = part(node, "svg");
  flag(svg, "viewBox", `0 0 ${size} ${HEIGHT}`);
  lanePaths(lane, top).forEach((path, slot) => {
    flag(svg.children[slot], "d", path);
    svg.children[slot].classList.toggle("dim", lanes.only !== null && lanes.only !== slot);
  });
  scrubbable(part(node, "plot"), size, `${lane.camera} of ${lane.device}, ${count(lane.total, "clip")}: time`);
}

function describeBucket(name, place) {
  const { list, since, bucket } = lanes.data;
  const lane = list.find((one) => cameraKey(one.device, one.camera) === name);
  if (!lane) return null;
  const from = since + place * bucket;
  const labels = [...(lane.bars[place]?.labels ?? [])].sort((one, other) => other[1] - one[1]);
  return {
    title: between(from, from + bucket),
    where: `${lane.camera} of ${lane.device}`,
    lines: labels.map(([label, clips]) => ({ slot: palette.slot(label), label, value: whole.format(clips) })),
    none: "no clips",
  };
}

function drawLanes(summary, cameras) {
  lanes.data = layLanes(summary, cameras);
  const { list, top, bucket } = lanes.data;
  const shown = lanes.all ? list : list.slice(0, FIRST_LANES);
  const density = shown.length > 8 ? "dense" : shown.length > 1 ? "some" : "one";
  flag($("lanes"), "data-density", density);
  keyed($("lane-list"), shown, (lane) => cameraKey(lane.device, lane.camera), newLane, drawLane);
  $("lanes").hidden = !list.length;
  $("lanes-none").hidden = Boolean(list.length);
  say($("lanes-none"), "No camera has sent anything in this span. Choose a longer one above.");
  const total = list.reduce((sum, lane) => sum + lane.total, 0);
  say($("over-note"), total ? `A full bar is ${count(top, "clip")} in ${lasting(bucket)}` : "");
  const more = $("more-lanes");
  more.hidden = list.length <= FIRST_LANES;
  say(more, lanes.all ? `Show the first ${FIRST_LANES} cameras only` : `Show all ${list.length} cameras`);
  oneStop();
  drawTicks();
  retell();
}

const STEPS = [300, 900, 3600, 3 * 3600, 6 * 3600, 86400];

// Ticks stand at round times of the viewer's zone, which summer time moves.
function drawTicks() {
  const { since, bucket, size } = lanes.data;
  const span = bucket * size;
  const step = STEPS.find((one) => span / one <= 8) ?? 86400;
  const at = [];
  const first = new Date(since * 1000);
  first.setHours(0, 0, 0, 0);
  for (let number = 0; ; number += 1) {
    const time = new Date(first);
    time.setSeconds(number * step);
    const seconds = time / 1000;
    if (seconds > since + span) break;
    if (seconds >= since) at.push(seconds);
  }
  const create = () => document.createElement("span");
  const room = $("ticks").clientWidth;
  keyed($("ticks"), at, String, create, (node, seconds) => {
    say(node, when(seconds, step === 86400 ? "weekday" : "minute"));
    const place = (seconds - since) / span;
    node.style.left = `${100 * place}%`;
    node.classList.toggle("last", (1 - place) * room < TICK_WIDTH);
  });
}

function drawLegend(entries, redraw) {
  if (lanes.only !== null && !entries.some((entry) => entry.slot === lanes.only)) lanes.only = null;
  const create = (entry) => {
    const node = clone("t-legend");
    part(node, "button").addEventListener("click", () => {
      lanes.only = lanes.only === Number(node.dataset.key) ? null : Number(node.dataset.key);
      redraw();
    });
    return node;
  };
  keyed($("legend"), entries, (entry) => String(entry.slot), create, (node, entry) => {
    paint(part(node, "swatch"), entry.slot);
    say(part(node, "label"), entry.label);
    flag(part(node, "button"), "aria-pressed", lanes.only === entry.slot);
  });
}
