"""What a reader meets who listens or uses the keyboard: axe-core on every chapter
and reference page.

`javascript/axe.min.js.gz` is axe-core 4.14.1 by Deque Systems, as published on npm,
under the Mozilla Public License 2.0.
"""

import json

import pytest
from conftest import axe_core
from test_book import PAGES, open_page

TOGETHER = 3  # pages that are looked at in parallel
API = [p for p in PAGES if p.startswith("nbs/api/")]  # made by one function: the first
LOOKED_AT = [p for p in PAGES if p not in API[2:]]

# Colours of code are a matter of classes: a block whose every class an earlier one had
# is left out, or the checks would take most of their time over it.
START = """(axeCore) => {
  if (!window.axe) (0, eval)(axeCore);
  const seen = new Set();
  for (const block of document.querySelectorAll('div.highlight')) {
    const kinds = [...block.querySelectorAll('[class]')].map(e => e.className);
    const kind = k => k + (block.closest('.cell_output') ? ' out' : ' in');
    if (kinds.length && kinds.every(k => seen.has(kind(k)))) block.dataset.seen = '';
    kinds.forEach(k => seen.add(kind(k)));
  }
  const look = async (mode, options) => {
    Object.assign(document.documentElement.dataset, {theme: mode, mode});
    await new Promise(done => setTimeout(done, 350));
    const {violations} = await axe.run({exclude: ['[data-seen]']},
      {resultTypes: ['violations'], ...options});
    return violations.filter(v => /critical|serious/.test(v.impact)).map(v =>
      `${mode}, ${v.impact}, ${v.id}: ` + v.nodes.slice(0, 3).map(n =>
        `${n.target.join(' ')} (${n.any[0]?.message ?? n.failureSummary})`).join('; '));
  };
  const colours = {runOnly: ['color-contrast', 'link-in-text-block']};
  window.found = look('light', {}).then(
    async light => [...light, ...await look('dark', colours)]);
}"""


@pytest.fixture(scope="module")
def tabs(browser, book_address):
    "Some tabs of one browser, for this module."
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, reduced_motion="reduce"
    )
    context.set_default_timeout(300_000)
    yield [context.new_page() for _ in range(TOGETHER)]
    context.close()


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "names",
    [LOOKED_AT[i : i + TOGETHER] for i in range(0, len(LOOKED_AT), TOGETHER)],
    ids=" ".join,
)
def test_axe_finds_nothing_critical_and_nothing_serious(tabs, book_address, names):
    axe = axe_core()
    for tab, name in zip(tabs, names):
        open_page(tab, book_address, name)
    for tab, _ in zip(tabs, names):
        if tab.locator("script[type*='jupyter.widget-view']").count():
            tab.locator(".widget-image").first.wait_for(state="attached")
        tab.evaluate(START, axe)  # which begins, and does not wait
    found = {n: t.evaluate("() => window.found") for t, n in zip(tabs, names)}
    assert not {n: f for n, f in found.items() if f}, json.dumps(found, indent=1)


@pytest.mark.parametrize("chapter", ["nbs/03_critters", "nbs/38_guidance_scale"])
def test_a_slider_has_a_name_and_says_its_value(page, book_address, chapter):
    open_page(page, book_address, chapter)
    handle = page.locator(".widget-slider .noUi-handle").first
    handle.wait_for()
    slider = page.locator(".widget-slider").first
    label = slider.locator(".widget-label").text_content().strip()
    page.wait_for_function(
        "() => document.querySelector('.noUi-handle').getAttribute('aria-label')"
    )
    assert handle.get_attribute("aria-label") == label
    said = []
    for key in (None, "ArrowRight", "ArrowLeft"):
        if key:
            handle.focus()
            page.keyboard.press(key)
            page.wait_for_timeout(400)
        value = slider.locator(".widget-readout").text_content().strip()
        assert handle.get_attribute("aria-valuetext") == value
        alt = page.locator(".widget-image").first.get_attribute("alt")
        said.append((value, alt))
        assert f"{label}: {value}" in alt
    assert said[0] == said[2] != said[1]
    assert page.problems == []


def test_a_slider_is_large_enough_and_shows_that_it_has_the_focus(page, book_address):
    open_page(page, book_address, "nbs/01_images")
    handle = page.locator(".widget-slider .noUi-handle").first
    handle.wait_for()
    box = handle.bounding_box()
    assert min(box["width"], box["height"]) >= 24
    page.locator("main").click(position={"x": 2, "y": 2})
    width = "e => parseFloat(getComputedStyle(e).outlineWidth)"
    style = "e => getComputedStyle(e).outlineStyle"
    handle.focus()
    page.keyboard.press("ArrowRight")  # the keyboard is in use
    assert handle.evaluate(width) >= 2 and handle.evaluate(style) == "solid"
