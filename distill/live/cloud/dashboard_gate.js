// The way in, and what is said when something is wrong.

const LINKS = { connecting: "Connecting", live: "Live", reconnecting: "Reconnecting", offline: "Offline" };

function showLink(state, error) {
  flag($("link"), "data-state", state);
  say($("link"), error instanceof Refused ? `${LINKS[state]}: ${error.message}` : LINKS[state]);
}

function showTrouble(sentence) {
  say($("trouble"), sentence);
  $("trouble").hidden = !sentence;
}

function showGate(sentence) {
  showTrouble("");
  $("app").hidden = true;
  $("facts").hidden = true;
  $("sign-out").hidden = true;
  $("link").hidden = true;
  $("gate").hidden = false;
  say($("key-error"), sentence);
  flag($("key"), "aria-invalid", Boolean(sentence));
  $("key").value = "";
  $("key").focus();
}

function showApp() {
  $("gate").hidden = true;
  $("app").hidden = false;
  $("facts").hidden = false;
  $("link").hidden = false;
  $("sign-out").hidden = !key.get();
}

function whyLocked(error) {
  if (error.status === 403) return error.message;
  return key.get() ? "The service does not know this key; check that it is whole and has not been revoked." : "";
}

function showClassifier({ classes, kind, version, encoder, keep_days, calibrated }) {
  $("uncalibrated").hidden = calibrated !== false;
  const kept = keep_days ? count(keep_days, "day") : "good";
  const what = `${kind} of ${count(classes.length, "action")}`;
  say($("made"), [what, `encoder ${encoder}`, `predictions are kept for ${kept}`, `distill ${version}`].join(" · "));
}

// A file needs the key, too, which a plain link cannot carry.
async function download(format, values) {
  const response = await request("v1/export", { ...values, format });
  const told = response.headers.get("Content-Disposition") ?? "";
  const name = /filename="?([^";]+)/.exec(told)?.[1] ?? `predictions.${format}`;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await response.blob());
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
