"""A real browser on the page, which notes whatever a page must not do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, Route

Routes = Mapping[str, Callable[[Route], None]]
NONE: Routes = {}
CHROMIUM = Path("/usr/bin/chromium")
QUIET = ("quic", "background-networking", "component-update", "sync", "gpu")
ARGUMENTS = ["--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in QUIET)]
WATCH = "document.addEventListener('securitypolicyviolation', (event) => console.error('CSP', event.violatedDirective))"
# WCAG: text of an element that can be seen, against the nearest ground behind it.
CONTRASTS = """() => {
  const dot = Object.assign(document.createElement("canvas"), {width: 1, height: 1});
  const canvas = dot.getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = rgba(getComputedStyle(node).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return rgba("Canvas");
  };
  const found = [];
  for (const node of document.body.querySelectorAll("*")) {
    const words = [...node.childNodes].filter((child) => child.nodeType === 3 && child.data.trim());
    if (!words.length || !node.checkVisibility({visibilityProperty: true}) || node.disabled) continue;
    const ink = rgba(getComputedStyle(node).color);
    if (ink[3] === 0) continue;
    const [low, high] = [light(ink), light(ground(node))].sort((a, b) => a - b);
    found.push([(high + .05) / (low + .05), node.tagName + "." + node.className + " " + words[0].data.trim()]);
  }
  return found;
}"""
# What reaches beyond the window and is not cut off by what it stands in.
OVERFLOW = """() => {
  const cut = (node) => node && (getComputedStyle(node).overflowX !== "visible" || cut(node.parentElement));
  const beyond = (node) => node.getBoundingClientRect().right > innerWidth + 1;
  const out = [...document.body.querySelectorAll("*")].filter(beyond);
  return out.filter((node) => node.checkVisibility() && !cut(node)).map((node) => node.outerHTML.slice(0, 80));
}"""


@contextmanager
def looking(
    browser: Browser, url: str, *allowed: str, path: str = "", routes: Routes = NONE, **context: Any
) -> Iterator[Page]:
    """A page whose errors, broken rules and requests elsewhere fail the test; errors that hold one of `allowed` are
    part of it."""
    wrong: list[str] = []
    usual = {"viewport": {"width": 1400, "height": 1000}, "timezone_id": "Europe/Berlin", "locale": "en-GB"}
    opened = browser.new_context(**{**usual, **context})
    opened.add_init_script(WATCH)
    page = opened.new_page()
    page.set_default_timeout(8000)
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(f"{error} {error.stack}"))
    page.on("request", lambda asked: None if asked.url.startswith((url, "data:", "blob:")) else wrong.append(asked.url))
    for pattern, answer in routes.items():
        page.route(pattern, answer)
    page.goto(f"{url}/{path}")
    yield page
    opened.close()
    unasked = [what for what in wrong if not any(text in what for text in allowed)]
    assert not unasked, unasked
