// Talking with the service: the viewer's key, questions, and the stream of predictions.

const KEY = "distill-key";
const SILENCE_MS = 40_000; // of a stream that says something every 15 s
const WAITS = { first: 500, longest: 15_000 };
const OFFLINE_AFTER = 3; // failures in a row

const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (text) => sessionStorage.setItem(KEY, text),
  forget: () => sessionStorage.removeItem(KEY),
  // A link with #key=... is taken once; neither the address bar nor the history keeps it.
  takeFromAddress() {
    const given = new URLSearchParams(location.hash.slice(1).replaceAll("+", "%2B")).get("key");
    if (given === null) return false;
    history.replaceState(null, "", location.pathname + location.search);
    if (given) this.set(given);
    return Boolean(given);
  },
};

class Refused extends Error {
  constructor(status, sentence, retrySeconds) {
    super(sentence);
    this.status = status;
    this.retrySeconds = retrySeconds;
  }
  get locked() {
    return this.status === 401 || this.status === 403;
  }
}

class Unreachable extends Error {}

function address(path, values = {}) {
  const given = Object.entries(values).filter(([, value]) => value !== "" && value != null);
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
}

async function refusal(response) {
  const body = await response.json().catch(() => ({}));
  const sentence = typeof body.detail === "string" ? body.detail : `The service answered ${response.status}.`;
  return new Refused(response.status, sentence, Number(response.headers.get("Retry-After")) || 0);
}

async function request(path, values, { signal, headers = {} } = {}) {
  const own = key.get() ? { Authorization: `Bearer ${encodable(key.get())}` } : {};
  let response;
  try {
    response = await fetch(address(path, values), { signal, headers: { ...own, ...headers }, cache: "no-store" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Unreachable("The service cannot be reached.");
  }
  clock.heard(response.headers.get("Date"));
  if (!response.ok) throw await refusal(response);
  return response;
}

// A header takes Latin letters only, and fetch throws at others; such a key is wrong in any case.
function encodable(text) {
  return text.replace(/[^\x21-\x7e]/g, "?");
}

async function ask(path, values, signal) {
  const response = await request(path, values, { signal });
  return response.json().catch((error) => {
    throw signal?.aborted ? error : new Unreachable("The service's answer is not whole.");
  });
}

// Server-sent events as the standard has them: any line ends, several data lines, comments; text may break anywhere.
function eventReader(take) {
  let rest = "";
  let event = { type: "", data: [], id: "" };
  function field(name, value) {
    if (name === "data") event.data.push(value);
    else if (name === "event") event.type = value;
    else if (name === "id" && !value.includes("\0")) event.id = value;
  }
  function line(text) {
    if (text === "") {
      if (event.data.length) take({ type: event.type || "message", data: event.data.join("\n"), id: event.id });
      event = { type: "", data: [], id: event.id };
      return;
    }
    const colon = text.indexOf(":");
    if (colon < 0) field(text, "");
    else if (colon > 0) field(text.slice(0, colon), text.slice(colon + 1).replace(/^ /, ""));
  }
  return (text) => {
    const lines = (rest + text).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    lines.forEach(line);
  };
}

async function readStream(response, take, abort) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const read = eventReader(take);
  for (;;) {
    const watchdog = setTimeout(abort, SILENCE_MS);
    const { value, done } = await reader.read().finally(() => clearTimeout(watchdog));
    if (done) return;
    read(value);
  }
}

function sleep(milliseconds, signal) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      window.removeEventListener("online", done);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, milliseconds);
    window.addEventListener("online", done);
    signal.addEventListener("abort", done);
  });
}

function wait(failures, error) {
  const backoff = Math.min(WAITS.longest, WAITS.first * 2 ** (failures - 1)) * (0.75 + Math.random() / 2);
  return Math.max(backoff, 1000 * (error?.retrySeconds ?? 0));
}

// Listens for as long as the page does. `begin` says which prediction is the last that is known, before each attempt.
async function follow({ begin, take, state, locked }, signal) {
  let failures = 0;
  async function listen() {
    const last = await begin(signal);
    const attempt = new AbortController();
    const headers = { Accept: "text/event-stream", "Last-Event-ID": String(last) };
    const stop = AbortSignal.any([signal, attempt.signal]);
    const response = await request("v1/stream", { after: last }, { signal: stop, headers });
    failures = 0;
    state("live");
    await readStream(response, take, () => attempt.abort());
  }
  while (!signal.aborted) {
    const error = await listen().then(() => null, (error) => error);
    if (signal.aborted) return;
    if (error?.locked) return locked(error);
    failures += 1;
    state(failures > OFFLINE_AFTER || !navigator.onLine ? "offline" : "reconnecting", error);
    await sleep(wait(failures, error), signal);
  }
}
