"""The dashboard in a real browser: what it shows is what the service says, and nothing that comes from there runs."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from dashboard_browser import ARGUMENTS, CHROMIUM, CONTRASTS, OVERFLOW, looking
from dashboard_house import EVIL, House
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from distill.live.cloud import access
from distill.live.cloud.dashboard import FOLDER, page
from distill.live.cloud.tables import DEVICE
from distill.live.wire import CameraState

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}")
LOCKED, GONE = "401 (Unauthorized)", "net::ERR_"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    started = House(tmp_path).start()
    yield started
    started.close()


@pytest.fixture
def busy(house: House) -> House:
    """Two devices, three cameras, actions of several kinds, now and some time ago."""
    for ago in (0.0, 130.0, 1000.0, 7500.0):
        house.send("box1", "door", ("wave", 0.93), ("wave", 0.71), ("clap", 0.55), ago=ago)
        house.send("box1", "yard", ("walk", 0.99), ("sit down", 0.4), ago=ago)
        house.send("box2", "desk", ("clap", 0.83), (EVIL, 0.66), ago=ago, network_ms=None)
    house.report("box1", CameraState("door", "running", fps=14.9), CameraState("yard", "running", fps=15.2))
    house.report("box2", CameraState("desk", "running", fps=25.0))
    return house


def signed_in(house: House, query: str = "") -> str:
    return f"{query}#key={house.viewer}"


def ids(seen: Page) -> list[int]:
    return [int(number) for number in seen.eval_on_selector_all("#rows tr", "rows => rows.map(row => row.dataset.id)")]


def known(house: House, **values: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = house.read("predictions", limit=1000, **values)["predictions"]
    return found


def live(seen: Page) -> None:
    expect(seen.locator("#link")).to_have_text("Live")


def shown_bars(seen: Page, where: str) -> dict[str, str]:
    rows = seen.locator(f"{where} li").all()
    return {row.locator("[data-part=label]").inner_text(): row.locator(".value").inner_text() for row in rows}


def test_the_page_is_whole_and_its_policy_names_what_it_holds() -> None:
    body, policy = page()
    html = body.decode()
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        held = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", html, re.DOTALL)
        assert len(held) == 1
        digest = base64.b64encode(hashlib.sha256(held[0].encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}';" in policy
    for rule in ("default-src", "base-uri", "form-action", "frame-ancestors"):
        assert f"{rule} 'none'" in policy
    assert "unsafe" not in policy
    markup = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", html, flags=re.DOTALL)
    assert not re.search(r"\s(style|on\w+)=", markup)
    assert not re.search(r"(src|href)=\"(?!data:|#)", markup)
    for script in FOLDER.glob("dashboard*.js"):
        text = script.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function", text), script


def test_predictions_appear_by_themselves(browser: Browser, busy: House) -> None:
    with looking(browser, busy.url, path=signed_in(busy)) as seen:
        live(seen)
        expect(seen.locator("#rows tr")).to_have_count(28)
        busy.send("box2", "desk", ("walk", 0.9), ago=0.5, network_ms=7.0)
        expect(seen.locator("#rows tr")).to_have_count(29)
        newest = known(busy)[0]
        first = seen.locator("#rows tr").first
        cells = {name: first.locator(f"[data-part={name}]").inner_text() for name in ("camera", "device", "label")}
        assert cells == {name: newest[name] for name in cells}
        assert first.locator("[data-part=confidence]").inner_text() == "90.0\N{NO-BREAK SPACE}%"
        whole = newest["edge_ms"] + newest["network_ms"] + newest["cloud_ms"]
        assert first.locator("[data-part=latency]").inner_text() == f"{math.floor(whole + 0.5)}\N{NO-BREAK SPACE}ms"
        assert first.locator("[data-part=stages]").inner_text().split(" + ")[1] == "7"
        assert ids(seen) == [row["id"] for row in known(busy)]
        # One polite region, which says how the connection is; rows come too often to be read out.
        assert seen.eval_on_selector_all("[aria-live], [role=status], [role=log]", "all => all.map(one => one.id)") == [
            "link"
        ]


def test_what_came_while_the_service_was_gone_is_shown_once(browser: Browser, busy: House) -> None:
    with looking(browser, busy.url, GONE, path=signed_in(busy)) as seen:
        live(seen)
        for _ in range(2):
            busy.stop()
            expect(seen.locator("#link")).to_have_text(re.compile("Reconnecting|Offline"))
            busy.start()
            busy.send("box1", "door", *[("wave", 0.9)] * 7)
            live(seen)
            busy.send("box1", "door", *[("clap", 0.9)] * 3)
            expect(seen.locator("#rows tr").first.locator("[data-part=label]")).to_have_text("clap")
            expect(seen.locator("#rows tr")).to_have_count(len(known(busy)))
            assert ids(seen) == [row["id"] for row in known(busy)]


def test_after_a_long_sleep_and_after_a_new_beginning_the_newest_are_shown(
    browser: Browser, busy: House, tmp_path: Path
) -> None:
    with looking(browser, busy.url, GONE, LOCKED, path=signed_in(busy)) as seen:
        live(seen)
        busy.stop()
        expect(seen.locator("#link")).not_to_have_text("Live")
        busy.start()
        for _ in range(9):
            busy.send("box1", "door", *[("wave", 0.9)] * 250)
        wanted = [row["id"] for row in known(busy)][:100]
        expect(seen.locator("#rows tr").first).to_have_attribute("data-id", str(wanted[0]))
        assert ids(seen) == wanted
        busy.stop()
        again = House(tmp_path / "again", port=busy.port).start()
        # Whose keys are others.
        expect(seen.locator("#key-error")).to_have_text(re.compile("does not know this key"))
        seen.get_by_label("Viewer's key").fill(again.viewer)
        seen.keyboard.press("Enter")
        again.send("box1", "yard", ("walk", 0.9))
        expect(seen.locator("#rows tr")).to_have_count(1)
        assert ids(seen) == [row["id"] for row in known(again)]
        again.close()


def test_a_service_that_does_not_come_back_is_called_offline(browser: Browser, busy: House) -> None:
    with looking(browser, busy.url, GONE, path=signed_in(busy)) as seen:
        live(seen)
        busy.stop()
        expect(seen.locator("#link")).to_have_text("Offline", timeout=15_000)
        expect(seen.locator("#rows tr")).to_have_count(28)  # what is known stays


def test_filters_hold_for_everything(browser: Browser, busy: House) -> None:
    with looking(browser, busy.url, path=signed_in(busy)) as seen:
        expect(seen.locator("#lane-list .lane")).to_have_count(3)
        seen.select_option("#cameras", label="yard")
        expect(seen.locator("#rows tr")).to_have_count(8)
        expect(seen.locator("#lane-list .lane")).to_have_count(1)
        assert set(shown_bars(seen, "#share")) == {"walk", "sit down"}
        assert seen.locator("#devices .device").count() == 1
        busy.send("box1", "door", ("wave", 0.9))
        busy.send("box1", "yard", ("clap", 0.9))
        expect(seen.locator("#rows tr")).to_have_count(9)
        assert ids(seen) == [row["id"] for row in known(busy, device="box1", camera="yard")]
        seen.select_option("#cameras", label="All of box1")
        expect(seen.locator("#rows tr")).to_have_count(22)
        assert ids(seen) == [row["id"] for row in known(busy, device="box1")]
        seen.reload()  # the address holds what was chosen
        expect(seen.locator("#rows tr")).to_have_count(22)
        assert seen.eval_on_selector("#cameras", "node => node.selectedOptions[0].text") == "All of box1"


def test_one_action_alone(browser: Browser, busy: House) -> None:
    with looking(browser, busy.url, path=signed_in(busy)) as seen:
        live(seen)
        assert seen.eval_on_selector_all("#actions option", "all => all.map(one => one.text)") == [
            "All actions", *sorted(busy.classes)
        ]  # fmt: skip
        seen.select_option("#actions", label="clap")
        expect(seen.locator("#rows tr")).to_have_count(8)
        expect(seen.locator("#share li")).to_have_count(1)
        assert set(shown_bars(seen, "#share")) == {"clap"}
        seen.select_option("#cameras", label="door")
        expect(seen.locator("#rows tr")).to_have_count(4)
        busy.send("box1", "door", ("wave", 0.9), ("clap", 0.9))
        expect(seen.locator("#rows tr")).to_have_count(5)
        assert ids(seen) == [row["id"] for row in known(busy, device="box1", camera="door", label="clap")]
        with seen.expect_download() as started:
            seen.get_by_role("button", name="CSV").click()
        saved = list(csv.DictReader(io.StringIO(Path(started.value.path()).read_text(encoding="utf-8"))))
        assert {(row["camera"], row["label"]) for row in saved} == {("door", "clap")}
        seen.reload()
        expect(seen.locator("#rows tr")).to_have_count(5)
        assert seen.eval_on_selector("#actions", "node => node.value") == "clap"
    with looking(browser, busy.url, path=signed_in(busy, "?label=of+another+classifier")) as seen:
        live(seen)
        assert seen.eval_on_selector("#actions", "node => node.value") == "of another classifier"
        expect(seen.locator("#rows-none")).to_be_visible()


def test_rows_that_could_not_be_fetched_are_fetched_later(browser: Browser, busy: House) -> None:
    refused = iter([True, True])

    def refuse(route: Route) -> None:
        if next(refused, False):
            route.fulfill(status=503, json={"detail": "the database is away"})
        else:
            route.continue_()

    with looking(browser, busy.url, "503", path=signed_in(busy), routes={"**/v1/predictions?*label=*": refuse}) as seen:
        live(seen)
        expect(seen.locator("#rows tr")).to_have_count(28)
        seen.select_option("#actions", label="clap")
        expect(seen.get_by_role("alert")).to_have_text(re.compile("the database is away"))
        expect(seen.locator("#rows tr")).to_have_count(8, timeout=20_000)
        expect(seen.locator("#trouble")).to_be_hidden()


def test_actions_with_odd_names_can_be_chosen_and_leave_colours_alone(browser: Browser, tmp_path: Path) -> None:
    names = (" pick  up ", *(f"action {number}" for number in range(11)))
    own = House(tmp_path, names).start()
    for number, name in enumerate(reversed(names)):
        own.send("box1", "door", *[(name, 0.9)] * (number + 1))
    with looking(browser, own.url, path=signed_in(own)) as seen:
        expect(seen.locator("#share li")).to_have_count(9)
        colours = "all => all.map(one => one.querySelector('[data-part=swatch]').className + one.textContent)"
        before = seen.eval_on_selector_all("#legend li", colours)
        for rare in ("action 10", "action 9"):
            seen.select_option("#actions", rare)
            expect(seen.locator("#share [data-part=label]")).to_have_text([rare])
        seen.select_option("#actions", names[0])
        expect(seen.locator("#clip-count")).to_have_text("12")
        assert {row["label"] for row in known(own, label=names[0])} == {names[0]}
        seen.select_option("#actions", "")
        expect(seen.locator("#share li")).to_have_count(9)
        assert seen.eval_on_selector_all("#legend li", colours) == before
    own.close()


def test_spans(browser: Browser, busy: House) -> None:
    with looking(browser, busy.url, path=signed_in(busy)) as seen:
        for span, clips in (("15 min", 14), ("1 h", 21), ("6 h", 28), ("7 days", 28), ("24 h", 28)):
            seen.get_by_role("radio", name=span, exact=True).check(force=True)
            expect(seen.locator("#clip-remark")).to_have_text(f"in {span}")
            expect(seen.locator("#clip-count")).to_have_text(str(clips))
        assert "span=24h" in seen.url
        assert seen.locator("#ticks span").count() >= 4


def test_charts_have_the_numbers_of_the_data(browser: Browser, busy: House) -> None:
    with looking(browser, busy.url, path=signed_in(busy, "?span=6h")) as seen:
        rows = known(busy)
        expect(seen.locator("#clip-count")).to_have_text(str(len(rows)))
        sure = defaultdict(list)
        for row in rows:
            sure[row["label"]].append(row["confidence"])
        said = {label: f"{100 * len(some) / len(rows):.1f}\xa0% {len(some)}" for label, some in sure.items()}
        assert {label: " ".join(value.split("\n")) for label, value in shown_bars(seen, "#share").items()} == said
        means = {label: f"{100 * sum(some) / len(some):.1f}\xa0%" for label, some in sure.items()}
        assert {label: value.strip() for label, value in shown_bars(seen, "#means").items()} == means
        lanes = {
            lane.locator("[data-part=camera]").inner_text(): int(lane.locator("[data-part=total]").inner_text())
            for lane in seen.locator(".lane").all()
        }
        assert lanes == Counter(row["camera"] for row in rows)
        latency = busy.read("summary", since=time.time() - 21_600, until=time.time() + 60, bucket=300)["latency_ms"]
        for stage, ranks in latency.items():
            cells = seen.locator(f"#stages [data-key={stage}]")
            for rank, value in ranks.items():
                assert same(cells.locator(f"[data-part={rank}]").inner_text(), value)
        assert histogram(seen) == Counter(min(9, int(10 * row["confidence"])) for row in rows)
        assert heights(seen) == tallest(rows)


def same(shown: str, milliseconds: float) -> bool:
    number, unit = shown.replace("\N{NO-BREAK SPACE}", " ").split(" ")
    value = float(number) * {"ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000}[unit]
    return math.isclose(value, milliseconds, rel_tol=0.06) if milliseconds > 1 else abs(value - milliseconds) < 0.06


def spoken(seen: Page, plot: str) -> list[str]:
    """What the arrow keys tell about each bar of a plot."""
    bars = []
    seen.locator(plot).first.focus()
    seen.keyboard.press("Home")
    for _ in range(int(seen.locator(plot).first.get_attribute("aria-valuemax") or 0) + 1):
        bars.append(seen.locator(plot).first.get_attribute("aria-valuetext") or "")
        seen.keyboard.press("ArrowRight")
    return bars


def histogram(seen: Page) -> Counter[int]:
    bars = spoken(seen, "#histogram")
    found = {place: re.search(r"clips (\d+)$", bar) for place, bar in enumerate(bars)}
    return Counter({place: int(match[1]) for place, match in found.items() if match})


def heights(seen: Page) -> float:
    """Clips of the first lane's highest bar, from the picture itself."""
    note = seen.locator("#over-note").inner_text()
    paths = seen.eval_on_selector_all(".lane:first-child path", "all => all.map(one => one.getAttribute('d'))")
    tall: dict[str, float] = defaultdict(float)
    for left, height in re.findall(r"M([\d.]+) [\d.]+h[\d.]+v([\d.]+)", " ".join(paths)):
        tall[left] += float(height) / 1000
    found = re.search(r"\d+", note)
    assert found
    return round(max(tall.values()) * int(found[0]))


def tallest(rows: list[dict[str, Any]]) -> int:
    bars = Counter(row["captured"] // 300 for row in rows if row["camera"] == "door")
    return max(bars.values())


def test_health(browser: Browser, busy: House) -> None:
    busy.report(
        "box1",
        CameraState("door", "lost", "no frame for 20 s", 0.0, 900, 3, 90, 2, 4),
        CameraState("yard", "starting"),
        CameraState("roof", "ended", "the file ended"),
        spool_clips=340,
        spool_bytes=720_000,
        spool_seconds=610.0,
        spool_dropped=12,
        send_errors=41,
    )
    with looking(browser, busy.url, path=signed_in(busy), routes={"**/v1/cameras": silenced}) as seen:
        first, second = seen.locator("[data-key=box1].device"), seen.locator("[data-key=box2].device")
        expect(first.locator("[data-part=badge]")).to_have_text("Reporting")
        expect(second.locator("[data-part=badge]")).to_have_text("Silent")
        expect(second).to_have_class(re.compile("silent"))
        expect(second.locator("[data-part=state]")).to_have_text("Was running")
        expect(seen.locator("#device-remark")).to_have_text("⚠ 1 silent")
        expect(seen.locator("#camera-remark")).to_have_text("⚠ 1 lost")
        facts = dict(zip(first.locator("dt").all_inner_texts(), first.locator("dd").all_inner_texts(), strict=True))
        said = {
            "Oldest waiting": "⚠ 10 min",
            "Given up": "⚠ 12 clips",
            "Send errors": "⚠ 41",
            "Waiting": "340 clips, 720 kB",
        }
        assert {name: facts[name].replace("\xa0", " ") for name in said} == said
        door = first.locator("tr[data-key=door]")
        parts = ("state", "why", "fps", "frames-dropped", "clips-dropped", "reconnects")
        shown = [door.locator(f"[data-part={name}]").inner_text() for name in parts]
        assert shown == ["Lost", "no frame for 20 s", "0.0", "3", "2", "4"]
        assert first.locator("tr[data-key=roof] [data-part=label]").inner_text() == "none yet"
        expect(second.locator("[data-part=seen]")).to_have_text(re.compile(r"seen (31|32|33|34|35).s ago"))


def test_who_sends_clips_only(browser: Browser, busy: House) -> None:
    """As programs may; nobody has said how it is."""
    busy.devices["a program"] = access.add(busy.engine, "a program", DEVICE)
    busy.send("a program", "gate", ("wave", 0.9))
    with looking(browser, busy.url, path=signed_in(busy)) as seen:
        box = seen.locator("[data-key='a program'].device")
        expect(box.locator("[data-part=badge]")).to_have_text("Sends clips only")
        expect(box.locator("[data-part=seen]")).to_have_text(re.compile("seen"))
        expect(box.locator("[data-key=gate] [data-part=state]")).to_have_text("Unknown")


def silenced(route: Route) -> None:
    unheard(route, 5.0)


def seldom_heard(route: Route) -> None:
    unheard(route, 60.0)


def unheard(route: Route, report_seconds: float) -> None:
    answer = route.fetch()
    body = answer.json()
    body["devices"][1]["silent_seconds"] += 31
    body["devices"][1]["status"]["report_seconds"] = report_seconds
    route.fulfill(response=answer, body=json.dumps(body))


def test_who_reports_seldom_is_not_silent(browser: Browser, busy: House) -> None:
    with looking(browser, busy.url, path=signed_in(busy), routes={"**/v1/cameras": seldom_heard}) as seen:
        box = seen.locator("[data-key=box2].device")
        expect(box.locator("[data-part=seen]")).to_have_text(re.compile("seen 3"))
        expect(box.locator("[data-part=badge]")).to_have_text("Reporting")


def test_the_key(browser: Browser, busy: House) -> None:
    with looking(browser, busy.url, LOCKED, "403 (Forbidden)") as seen:
        field, why = seen.get_by_label("Viewer's key"), seen.locator("#key-error")
        expect(field).to_be_focused()
        expect(why).to_have_text("")
        assert field.get_attribute("type") == "password"
        assert field.get_attribute("autocomplete") == "current-password"
        field.fill("wrong ключ")
        seen.keyboard.press("Enter")
        expect(why).to_have_text(re.compile(r"^The service does not know this key.*\.$"))
        expect(seen.locator("#app")).to_be_hidden()
        field.fill(busy.devices["box1"])
        seen.keyboard.press("Enter")
        expect(why).to_have_text(re.compile("device"))
        field.fill(busy.viewer)
        seen.keyboard.press("Enter")
        live(seen)
        assert seen.evaluate("[sessionStorage.length, Object.keys(localStorage).join(), document.cookie]") == [
            1,
            "distill-theme",
            "",
        ]
        seen.reload()
        live(seen)
        seen.get_by_role("button", name="Sign out").click()
        expect(field).to_be_visible()
        assert seen.evaluate("sessionStorage.length") == 0
        assert seen.locator("#rows tr").count() == 0


def test_a_key_in_the_address_is_taken_once(browser: Browser, busy: House) -> None:
    with looking(browser, busy.url, path=signed_in(busy, "?span=6h")) as seen:
        live(seen)
        assert seen.url == f"{busy.url}/?span=6h"
        assert busy.viewer not in seen.content()


def test_a_key_that_is_revoked(browser: Browser, busy: House) -> None:
    with looking(browser, busy.url, LOCKED, GONE, path=signed_in(busy)) as seen:
        live(seen)
        busy.revoke()
        expect(seen.locator("#key-error")).to_have_text(re.compile("revoked"), timeout=20_000)
        expect(seen.locator("#app")).to_be_hidden()


def test_troubles_are_told_in_words(browser: Browser, busy: House) -> None:
    def refuse(route: Route) -> None:
        route.fulfill(status=503, json={"detail": "64 pages listen already"})

    routes = {"**/v1/stream*": refuse, "**/v1/summary*": lambda route: route.abort()}
    with looking(browser, busy.url, "503", GONE, path=signed_in(busy), routes=routes) as seen:
        expect(seen.locator("#link")).to_have_text(re.compile("^Reconnecting: 64 pages listen already$"))
        expect(seen.get_by_role("alert")).to_have_text("The service cannot be reached. What is shown may be old.")


def test_a_hidden_page_asks_nothing(browser: Browser, busy: House) -> None:
    with looking(browser, busy.url, path=signed_in(busy)) as seen:
        expect(seen.locator("#lane-list .lane")).to_have_count(3)
        live(seen)
        asked: list[str] = []
        seen.on("request", lambda request: asked.append(request.url))
        turn = """(hidden) => { Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
            document.dispatchEvent(new Event("visibilitychange")); }"""
        seen.evaluate(turn, True)
        seen.wait_for_timeout(5500)
        assert asked == []
        with seen.expect_request("**/v1/summary*"):
            seen.evaluate(turn, False)


def test_very_many_cameras(browser: Browser, house: House) -> None:
    cameras = [f"camera {number}" for number in range(1, 61)]
    for camera in cameras:
        house.send("box1", camera, ("wave", 0.9))
    house.report("box1", *[CameraState(camera, "running") for camera in cameras])
    with looking(browser, house.url, path=signed_in(house)) as seen:
        lanes = seen.locator("#lane-list .lane [data-part=camera]")
        expect(lanes).to_have_count(20)
        assert lanes.all_inner_texts() == cameras[:20]  # 2 comes before 10
        seen.get_by_role("button", name="Show all 60 cameras").click()
        expect(lanes).to_have_count(60)
        tally = seen.get_by_text("60 cameras: 60 running")
        expect(seen.get_by_role("rowheader", name="camera 60")).to_be_hidden()
        tally.click()
        expect(seen.get_by_role("rowheader", name="camera 60")).to_be_visible()


def test_exports(browser: Browser, busy: House, tmp_path: Path) -> None:
    with looking(browser, busy.url, path=signed_in(busy)) as seen:
        expect(seen.locator("#clip-count")).to_have_text("21")
        seen.select_option("#cameras", label="door")
        expect(seen.locator("#clip-count")).to_have_text("9")
        found = {}
        for name in ("CSV", "Parquet"):
            with seen.expect_download() as waiting:
                seen.get_by_role("button", name=name).click()
            found[name] = tmp_path / waiting.value.suggested_filename
            waiting.value.save_as(found[name])
        wanted = [row for row in known(busy, device="box1", camera="door") if row["captured"] > time.time() - 3600]
        rows = list(csv.DictReader(io.StringIO(found["CSV"].read_text())))
        assert {int(row["id"]) for row in rows} == {row["id"] for row in wanted}
        table = pq.read_table(found["Parquet"])
        assert set(table.column("id").to_pylist()) == {row["id"] for row in wanted}
        assert set(table.column("label").to_pylist()) == {"wave", "clap"}


def test_labels_are_text(browser: Browser, busy: House) -> None:
    with looking(browser, busy.url, path=signed_in(busy)) as seen:
        live(seen)
        expect(seen.locator("#share [data-part=label]").filter(has_text=EVIL)).to_be_visible()
        expect(seen.locator("#rows [data-part=label]").filter(has_text=EVIL).first).to_be_visible()
        seen.locator(".lane:first-child .plot").hover()
        assert seen.locator("img").count() == 0
        assert seen.title() != "owned"


def test_by_the_keyboard_alone(browser: Browser, busy: House) -> None:
    with looking(browser, busy.url, path=signed_in(busy)) as seen:
        expect(seen.locator("#lane-list .lane")).to_have_count(3)
        walked = []
        for _ in range(40):
            seen.keyboard.press("Tab")
            here = seen.evaluate(
                """() => { const node = document.activeElement, mark = node.type === "radio" ? node.nextSibling : node;
                return [node.id || node.dataset.format || node.dataset.part || node.name || node.tagName,
                        getComputedStyle(mark).outlineStyle !== "none"]; }"""
            )
            if here[0] == "BODY":
                break
            walked.append(here)
        names = [name for name, _ in walked]
        assert all(ringed for _, ringed in walked), walked
        for name in (
            "theme",
            "sign-out",
            "span",
            "cameras",
            "actions",
            "csv",
            "parquet",
            "pause",
            "live-scroll",
            "histogram",
        ):
            assert names.count(name) == 1, (name, names)
        assert names.count("plot") == 1  # the lanes are one stop
        plot = seen.locator(".lane:first-child .plot")
        plot.focus()
        seen.keyboard.press("End")
        expect(seen.locator("#tip")).to_contain_text("door of box1")
        seen.keyboard.press("ArrowDown")
        expect(seen.locator("#tip")).to_contain_text("yard of box1")
        seen.keyboard.press("Escape")
        expect(seen.locator("#tip")).to_be_hidden()
        seen.get_by_role("button", name="wave").focus()
        seen.keyboard.press("Enter")
        expect(seen.get_by_role("button", name="wave")).to_have_attribute("aria-pressed", "true")


def test_pause(browser: Browser, busy: House) -> None:
    with looking(browser, busy.url, path=signed_in(busy)) as seen:
        live(seen)
        expect(seen.locator("#rows tr")).to_have_count(28)
        seen.get_by_role("button", name="Pause").click()
        busy.send("box1", "door", ("wave", 0.9), ("clap", 0.9))
        expect(seen.get_by_role("button", name="Resume (2 new)")).to_be_visible()
        assert seen.locator("#rows tr").count() == 28
        seen.keyboard.press("Enter")
        expect(seen.locator("#rows tr")).to_have_count(30)
        assert ids(seen) == [row["id"] for row in known(busy)]


def test_nothing_yet(browser: Browser, house: House) -> None:
    with looking(browser, house.url, path=signed_in(house)) as seen:
        expect(seen.get_by_role("heading", name="No clips yet")).to_be_visible()
        expect(seen.get_by_text("distill cloud devices recipe=cloud add=box1", exact=True)).to_be_visible()
        house.send("box1", "door", ("wave", 0.9))
        expect(seen.locator("#rows tr")).to_have_count(1)
        expect(seen.get_by_role("heading", name="No clips yet")).to_be_hidden(timeout=8000)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_themes_are_legible(browser: Browser, busy: House, theme: Any) -> None:
    with looking(browser, busy.url, path=signed_in(busy), color_scheme=theme, reduced_motion="reduce") as seen:
        live(seen)
        expect(seen.locator("#lane-list .lane")).to_have_count(3)
        faint = [(ratio, what) for ratio, what in seen.evaluate(CONTRASTS) if ratio < 4.5]
        assert faint == []
        ground = "getComputedStyle(document.body).backgroundColor"
        before = seen.evaluate(ground)
        seen.select_option("#theme", "dark" if theme == "light" else "light")
        assert seen.evaluate(ground) != before
        assert not [what for what in seen.evaluate(CONTRASTS) if what[0] < 4.5]
        seen.reload()
        live(seen)
        assert seen.evaluate(ground) != before  # it is remembered
        assert seen.evaluate("getComputedStyle(document.querySelector('#link'), '::before').animationName") == "none"


@pytest.mark.parametrize("width", [360, 820, 1400])
def test_nothing_stands_beside_the_page(browser: Browser, busy: House, width: int) -> None:
    long = "a-camera-with-a-name-as-long-as-names-may-be-" + "x" * 19
    busy.send("box1", long, (EVIL, 0.9))
    busy.report("box1", CameraState(long, "lost", "rtsp://" + "very-long-" * 30), encoder="sha256:" + "0f" * 60)
    with looking(browser, busy.url, path=signed_in(busy), viewport={"width": width, "height": 800}) as seen:
        live(seen)
        expect(seen.locator("#lane-list .lane")).to_have_count(4)
        assert seen.evaluate("document.documentElement.scrollWidth") <= width
        assert seen.evaluate(OVERFLOW) == []


def test_many_predictions_leave_the_page_small(browser: Browser, busy: House) -> None:
    with looking(browser, busy.url, path=signed_in(busy)) as seen:
        live(seen)
        size = "[document.querySelectorAll('*').length, document.querySelectorAll('#rows tr').length]"
        for _ in range(50):
            busy.send("box1", "door", *[("wave", 0.9), ("clap", 0.8)] * 50)
        newest = busy.read("predictions", limit=1)["predictions"]
        expect(seen.locator("#rows tr").first).to_have_attribute("data-id", str(newest[0]["id"]))
        nodes, rows = seen.evaluate(size)
        assert rows == 100
        assert nodes < 3000
        assert ids(seen) == list(range(newest[0]["id"], newest[0]["id"] - 100, -1))


def test_events_may_break_anywhere(browser: Browser) -> None:
    texts = ['[{"id": 1, "label": "ß"}]', "[\n]"]
    stream = f": alive\n\nevent: predictions\r\nid: 1\r\ndata: {texts[0]}\r\n\r\nid:2\rdata: [\rdata: ]\r\rdata: lost"
    opened = browser.new_page()
    for name in ("dom", "api"):
        opened.add_script_tag(content=(FOLDER / f"dashboard_{name}.js").read_text(encoding="utf-8"))
    run = """([stream, size]) => { const found = []; const read = eventReader((event) => found.push(event));
        for (let at = 0; at < stream.length; at += size) read(stream.slice(at, at + size)); return found; }"""
    for step in (1, 2, 3, 7, 1000):
        assert opened.evaluate(run, [stream, step]) == [
            {"type": "predictions", "data": texts[0], "id": "1"},
            {"type": "message", "data": texts[1], "id": "2"},
        ]
    opened.close()
