"""Uses the live page as people do, in a headless Chromium. Prints one JSON object of what it found, for page.rs to judge.

Usage: page.py CHROMIUM use URL PICTURE
       page.py CHROMIUM keys URL KEY OTHERS_JOB
"""

import json
import sys

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

PROMPT = "What does a relay runner carry?"
PATIENCE_MS = 60_000


class Visit:
    """A page with what it complained of and whom it asked."""

    def __init__(self, browser, url, **options):
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(PATIENCE_MS)
        self.page = self.context.new_page()
        self.complaints, self.asked = [], []
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.response = self.page.goto(url)

    def live(self):
        self.page.wait_for_selector('#connection[data-state="live"]')
        return self.page

    def outside(self, url):
        return [asked for asked in self.asked if not asked.startswith(url)]

    def serious(self):
        found = Axe().run(self.page).response["violations"]
        return [
            f"{violation['id']}: {node['target']} {node.get('failureSummary', '')}"
            for violation in found
            if violation["impact"] in ("serious", "critical")
            for node in violation["nodes"]
        ]


def focused(page):
    return page.evaluate("document.activeElement.id || document.activeElement.className")


def tab_to(page, wanted):
    """Presses Tab until an element has the focus; returns the way there."""
    way = []
    while not way or way[-1] != wanted:
        page.keyboard.press("Tab")
        way.append(focused(page))
        assert len(way) < 20, f"no way to {wanted} by Tab: {way}"
    return way


def waterfall(page, selector):
    """A waterfall's parts, as numbers and as drawn."""
    return page.eval_on_selector(
        selector,
        """table => ({
            total: Number(table.dataset.total),
            parts: [...table.tBodies[0].rows].map(row => ({
                label: row.cells[0].textContent,
                ms: Number(row.dataset.ms),
                share: parseFloat(row.querySelector('.bar').style.width.split(',')[1]),
                said: row.cells[2].textContent,
            })),
        })""",
    )


def numbers(page):
    return page.eval_on_selector_all("#meters .value", "all => all.map(value => value.textContent)")


def wait_until(page, script, argument=None):
    page.wait_for_function(script, arg=argument)


def use(browser, url, picture):
    found = {}
    visit = Visit(browser, url, viewport={"width": 1280, "height": 800}, color_scheme="light")
    page = visit.live()
    found["policy"] = visit.response.headers.get("content-security-policy")

    # Numbers move while jobs run.
    wait_until(page, "() => /[1-9]/.test(document.querySelectorAll('#meters .value')[1].textContent)")
    first = numbers(page)
    wait_until(page, "first => [...document.querySelectorAll('#meters .value')].some((value, at) => value.textContent !== first[at])", first)
    found["meters"] = numbers(page)
    wait_until(page, "() => document.querySelectorAll('#jobs tr[data-job]').length > 3")
    wait_until(page, "() => document.querySelectorAll('#flow .use').length >= 3")
    found["stages"] = page.eval_on_selector_all("#stages tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))")
    found["workers"] = page.eval_on_selector_all("#flow .worker title", "all => all.map(title => title.textContent)")

    # A prompt by keyboard only.
    page.evaluate("document.activeElement.blur()")
    found["way"] = tab_to(page, "prompt")
    page.keyboard.press("Control+A")
    page.keyboard.type(PROMPT)
    tab_to(page, "max-tokens")
    page.keyboard.press("Control+A")
    page.keyboard.type("24")
    found["way"] += tab_to(page, "send")
    found["outline"] = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    page.evaluate(
        """() => {
            window.steps = [];
            const note = () => {
                const now = document.querySelector('#journey .now')?.textContent;
                if (now && window.steps.at(-1) !== now) window.steps.push(now);
            };
            new MutationObserver(note).observe(document.getElementById('journey'), { subtree: true, attributes: true });
        }"""
    )
    page.keyboard.press("Enter")
    page.wait_for_selector("#own table.waterfall")
    wait_until(page, "() => !document.querySelector('#journey .now')")
    found["steps"] = page.evaluate("window.steps")
    found["answer"] = page.inner_text("#answer")
    found["waterfall"] = waterfall(page, "#own table.waterfall")
    found["focus_after"] = focused(page)

    # The same job in the list, opened by keyboard.
    wait_until(page, "() => [...document.querySelectorAll('#jobs .opens')].some(button => button.title.startsWith('page-'))")
    own = page.evaluate("[...document.querySelectorAll('#jobs .opens')].find(button => button.title.startsWith('page-')).title")
    found["job"] = page.evaluate("id => fetch(`/api/jobs/${id}`).then(answer => answer.json())", own)
    opener = page.locator(f'#jobs .opens[title="{own}"]')
    opener.focus()
    page.keyboard.press("Enter")
    found["expanded"] = opener.get_attribute("aria-expanded")
    found["listed"] = waterfall(page, "#jobs tr:not([hidden]) > td > .where table.waterfall")
    found["serious"] = visit.serious()
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    page.screenshot(path=picture)

    dark = Visit(browser, url, viewport={"width": 1280, "height": 800}, color_scheme="dark")
    dark.live()
    dark.page.wait_for_selector("#jobs tr[data-job]")
    found["ground"] = [view.page.evaluate("getComputedStyle(document.body).backgroundColor") for view in (visit, dark)]
    found["serious"] += dark.serious()

    narrow = Visit(browser, url, viewport={"width": 360, "height": 740}, color_scheme="light")
    narrow.live()
    narrow.page.wait_for_selector("#jobs tr[data-job]")
    narrow.page.locator("#jobs .opens").first.click()
    found["narrow"] = narrow.page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
    found["serious"] += narrow.serious()
    narrow.page.screenshot(path=picture.replace(".png", "-narrow.png"), full_page=True)
    dark.page.screenshot(path=picture.replace(".png", "-dark.png"))

    visits = (visit, dark, narrow)
    found["complaints"] = [said for view in visits for said in view.complaints]
    found["outside"] = [asked for view in visits for asked in view.outside(url)]
    return found


def keys(browser, url, key, other):
    visit = Visit(browser, url, viewport={"width": 1280, "height": 800})
    page = visit.page
    page.wait_for_selector("#key-dialog[open]")
    found = {"focus": focused(page), "before": page.inner_text("#jobs tbody")}
    page.keyboard.type("bt-wrong")
    page.keyboard.press("Enter")
    wait_until(page, "() => document.getElementById('key-said').textContent.includes('not known')")
    page.wait_for_selector("#key-dialog[open]")
    page.keyboard.type(key)
    page.keyboard.press("Enter")
    visit.live()
    page.wait_for_selector("#jobs tr[data-job]")
    found["jobs"] = page.eval_on_selector_all("#jobs .opens", "all => all.map(button => button.title)")
    found["kept"] = page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]")
    found["outside"] = visit.outside(url)
    found["bare"] = page.evaluate(
        "Promise.all(['/api/live', '/api/jobs', '/api/jobs/x'].map(path => fetch(path).then(answer => answer.status)))"
    )
    found["others"] = page.evaluate(
        """async ([key, other]) => {
            const options = { headers: { Authorization: `Bearer ${key}` } };
            const shown = await fetch(`/api/jobs/${other}`, options).then(answer => answer.json());
            const cancelled = await fetch(`/api/jobs/${other}`, { ...options, method: 'DELETE' });
            return [shown, cancelled.status];
        }""",
        [key, other],
    )
    return found


def main():
    chromium, what, url, *rest = sys.argv[1:]
    with sync_playwright() as driver:
        # The sandbox wants rights that root in a container does not have.
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        found = {"use": use, "keys": keys}[what](browser, url, *rest)
        browser.close()
    json.dump(found, sys.stdout)


main()
