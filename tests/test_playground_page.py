"""The playground as a reader meets it: in Chromium, from the built book, no network."""

import re

import numpy as np
import pytest

from t2i_tutorial.hub import load_model

PAGE = "nbs/41_playground"
PROMPT = "a blue and red dragon with green eyes"


@pytest.fixture(autouse=True)
def patience(page):
    "A busy machine needs longer than Playwright waits."
    page.set_default_timeout(150_000)


@pytest.fixture
def opened(page, book_address):
    "The chapter, before anything was pressed."
    page.asked = []
    page.on("request", lambda r: page.asked.append(r.url))
    page.goto(f"{book_address}/{PAGE}.html", wait_until="load")
    page.locator("text=Start the playground").wait_for()
    return page


@pytest.fixture
def started(opened):
    "The chapter with the models loaded."
    opened.click("text=Start the playground")
    said(opened, "Ready")
    return opened


def said(page, beginning: str) -> str:
    "Wait until the live region begins so."
    page.wait_for_function(
        "(b) => document.querySelector('.t2i-status').textContent.startsWith(b)",
        arg=beginning,
    )
    return page.text_content(".t2i-status")


def choose(page, model="both", steps=8, seed=0):
    page.evaluate(
        """([model, steps, seed]) => {
      const p = document.querySelector('.t2i-playground').playground;
      const value = { imagen: p.imagen, gan: p.gan, both: 'both' }[model];
      p.model.querySelector(`input[value='${value}']`).checked = true;
      p.steps.value = steps; p.seed.value = seed }""",
        [model, steps, seed],
    )


def image(page, model: str) -> np.ndarray:
    "What a model has drawn, in [-1, 1]."
    found = page.evaluate(
        """(m) => [...document.querySelector('.t2i-playground')
                   .playground.cards[m].image]""",
        model,
    )
    return np.array(found, np.float32).reshape(3, 32, 32).clip(-1, 1)


def test_nothing_is_loaded_before_it_is_asked_for(opened):
    assert not [u for u in opened.asked if re.search(r"\.(onnx|gz)|worker\.js", u)]
    opened.click("text=Start the playground")
    said(opened, "Ready")
    files = [u for u in opened.asked if re.search(r"\.(onnx|gz)", u)]
    assert len(files) == 5 and len(set(files)) == 5  # the text encoder once
    sizes = opened.evaluate(
        "() => performance.getEntriesByType('resource').map(e => e.decodedBodySize)"
    )
    assert sum(sizes) < 25e6 and opened.problems == []


def test_the_page_draws_what_python_draws(started):
    choose(started, "both", steps=8, seed=5)
    started.fill(".t2i-prompt", PROMPT)
    started.click("button[type=submit]")
    said(started, "Drawn")
    for name, options in (
        ("critters-32", {"num_steps": 8}),
        ("critters-32-gigagan", {}),
    ):
        model = load_model(name, "cpu")
        expected = model.sample([PROMPT], seed=5, **options)[0].numpy()
        difference = 127.5 * np.abs(image(started, name) - expected).mean()
        assert difference < 2, (name, difference)
    text = started.text_content(".t2i-card[data-model='critters-32'] .t2i-python")
    assert f'sample(["{PROMPT}"], seed=5' in text and "num_steps=8" in text
    verdict = started.text_content(
        ".t2i-card[data-model='critters-32'] summary >> nth=1"
    )
    assert re.search(r"finds \d of 4 stated", verdict)
    assert started.problems == []


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_other_samplers_draw_what_python_draws(started, sampler):
    choose(started, "imagen", steps=6, seed=1)
    started.evaluate(
        """(s) => document.querySelector('.t2i-playground')
                  .playground.sampler.value = s""",
        sampler,
    )
    started.fill(".t2i-prompt", PROMPT)
    started.click("button[type=submit]")
    said(started, "Drawn")
    model = load_model("critters-32", "cpu")
    expected = model.sample([PROMPT], seed=1, num_steps=6, sampler=sampler)[0].numpy()
    assert 127.5 * np.abs(image(started, "critters-32") - expected).mean() < 2


def test_steps_can_be_gone_back_to(started):
    choose(started, "imagen", steps=4)
    started.click("summary:has-text('steps')")
    started.click("button[type=submit]")
    said(started, "Drawn")
    slider = started.locator("summary:has-text('steps') ~ .t2i-field input")
    assert slider.get_attribute("max") == "4" and slider.input_value() == "4"
    pixels = """() => [...document.querySelector('canvas[aria-label*=noisy]')
      .getContext('2d').getImageData(0, 0, 32, 32).data]"""
    last = started.evaluate(pixels)
    slider.focus()
    started.keyboard.press("Home")
    first = started.evaluate(pixels)
    assert np.abs(np.array(first, float) - last).mean() > 20
    assert started.locator(".t2i-maps figure").count() >= 5
    assert started.problems == []


def test_steps_that_are_opened_after_the_drawing_are_shown(started):
    choose(started, "imagen", steps=2)
    summary = "summary:has-text('steps')"
    panel = started.locator(f"details:has(> {summary})")
    if panel.get_attribute("open") is not None:
        started.click(summary)
    canvas = "document.querySelector('canvas[aria-label*=noisy]').getContext('2d')"
    started.evaluate(f"{canvas}.clearRect(0, 0, 32, 32)")
    started.click("button[type=submit]")
    said(started, "Drawn")
    drawn = f"{canvas}.getImageData(0, 0, 32, 32).data.some((v) => v)"
    assert not started.evaluate(drawn)
    started.click(summary)
    started.wait_for_function(drawn)


@pytest.mark.parametrize(
    "prompt, words",
    [
        ("   ", "The prompt is empty"),
        ("x" * 1001, "The prompt has 1001 characters"),
        ("🐉" * 500, "Drawn"),
        ("<b>é</b> " * 50, "Drawn"),
    ],
)
def test_odd_prompts_are_answered(started, prompt, words):
    choose(started, "gan")
    started.fill(".t2i-prompt", prompt)
    started.click("button[type=submit]")
    assert words in said(started, words.split()[0])
    assert started.problems == []


def test_unknown_words_are_marked_and_replaced(started):
    started.fill(".t2i-prompt", "a red dragn and a zebra")
    assert started.locator(".t2i-words u").all_text_contents() == ["dragn", "zebra"]
    started.click("text=dragn → dragon")
    assert started.input_value(".t2i-prompt") == "a red dragon and a zebra"


def test_attributes_are_chosen_instead_of_typed(started):
    started.click("summary:has-text('Choose attributes')")
    started.select_option("select[id$=species]", "owl")
    started.select_option("select[id$=body-colour]", "orange")
    assert started.input_value(".t2i-prompt") == "an orange owl"


def test_two_clicks_and_a_stop(started):
    choose(started, "imagen", steps=30)
    for _ in range(2):
        started.click("button[type=submit]")
    started.wait_for_timeout(300)
    started.click("text=Stop")
    said(started, "Stopped")
    choose(started, "imagen", steps=4)
    started.click("button[type=submit]")
    said(started, "Drawn")
    assert started.problems == []


def test_the_latent_follows_the_hand(started):
    choose(started, "gan")
    started.click("button[type=submit]")
    said(started, "Drawn")
    started.click("summary:has-text('latent space')")
    canvas = started.locator(".t2i-drag")
    canvas.scroll_into_view_if_needed()
    before = canvas.screenshot()
    box = canvas.bounding_box()
    started.mouse.move(box["x"] + 50, box["y"] + 50)
    started.mouse.down()
    started.mouse.move(box["x"] + 180, box["y"] + 120, steps=12)
    started.mouse.up()
    started.wait_for_function(
        "() => !document.querySelector('.t2i-playground').playground.moving"
    )
    assert canvas.screenshot() != before
    slider = started.locator("label:has-text('towards it') + input")
    slider.focus()
    started.keyboard.press("End")
    started.wait_for_timeout(500)
    assert started.problems == []


def test_leaving_while_it_draws_leaves_no_error(started, book_address):
    choose(started, "imagen", steps=30)
    started.click("button[type=submit]")
    started.goto(f"{book_address}/nbs/90_notation.html", wait_until="load")
    assert started.problems == []


def test_a_browser_without_webassembly_is_told_so(page, book_address):
    page.add_init_script("delete globalThis.WebAssembly")
    page.goto(f"{book_address}/{PAGE}.html", wait_until="load")
    assert "no WebAssembly" in said(page, "This browser")
    assert page.locator(".t2i-playground img").is_visible()


def test_too_little_memory_is_answered_by_a_message(page, book_address):
    page.route(
        "**/networks.js*",
        lambda route: route.fulfill(
            content_type="text/javascript",
            body="export class Networks { async load() { throw new RangeError("
            "'WebAssembly.Memory(): could not allocate memory') } }",
        ),
    )
    page.goto(f"{book_address}/{PAGE}.html", wait_until="load")
    page.click("text=Start the playground")
    assert "not enough memory" in said(page, "There is")
    assert page.locator("text=Start the playground").is_enabled()


def test_without_javascript_there_is_a_still_image(browser, book_address):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(f"{book_address}/{PAGE}.html", wait_until="load")
    still = tab.locator(".t2i-playground img")
    assert still.is_visible() and len(still.get_attribute("alt")) > 20
    assert "JavaScript" in tab.text_content(".t2i-playground")
    context.close()


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_a_telephone_and_both_modes(started, mode):
    started.evaluate("(m) => document.documentElement.dataset.theme = m", mode)
    started.set_viewport_size({"width": 390, "height": 844})
    for summary in started.locator(".t2i-playground > form summary").all():
        summary.click()
    assert started.evaluate("() => document.documentElement.scrollWidth") <= 391
    wide = started.evaluate(
        """() => [...document.querySelectorAll('.t2i-playground *')].filter(e =>
          e.getClientRects().length && e.getBoundingClientRect().right > 390).length"""
    )
    assert wide == 0


def test_every_control_has_a_name(started):
    nameless = started.evaluate(
        """() => [...document.querySelectorAll(
          '.t2i-playground :is(input, select, button, canvas, progress)')]
          .filter(e => !(e.labels?.length || e.textContent.trim() ||
                         e.getAttribute('aria-label'))).map(e => e.outerHTML)"""
    )
    assert nameless == []


def test_the_first_page_has_a_small_one(page, book_address):
    page.goto(f"{book_address}/nbs/index.html", wait_until="load")
    page.click("text=Start the playground")
    said(page, "Ready")
    page.fill(".t2i-prompt", PROMPT)
    page.keyboard.press("Enter")
    said(page, "Drawn")
    assert page.locator(".t2i-card").count() == 2 and page.problems == []
