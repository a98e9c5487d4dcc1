"""The playground as a reader meets it: in Chromium, from the built book, no network."""

import http.server
import io
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import QUIET, axe_core, find_chromium, guarded_tab, serve
from PIL import Image

from t2i_tutorial.core import to_pil
from t2i_tutorial.hub import load_model

pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "_ext" / "static" / "playground"
PAGE = "nbs/41_playground"
PROMPT = "a blue and red dragon with green eyes"
PATIENCE = 300_000  # milliseconds: a busy machine needs longer than Playwright waits


@pytest.fixture
def opened(page, book_address):
    "The chapter, before anything was pressed."
    page.set_default_timeout(PATIENCE)
    page.received = {}  # bytes by address
    page.on("response", receive)
    page.goto(f"{book_address}/{PAGE}.html", wait_until="load")
    page.locator("text=Start the playground").wait_for()
    return page


def receive(response):
    length = int(response.headers.get("content-length", 0))
    response.request.frame.page.received[response.url] = length


@pytest.fixture(scope="module")
def loaded(browser, book_address):
    "The chapter with the models loaded, once for many tests."
    options = {"permissions": ["clipboard-read", "clipboard-write"]}
    with guarded_tab(browser, book_address, **options) as tab:
        tab.set_default_timeout(PATIENCE)
        tab.goto(f"{book_address}/{PAGE}.html", wait_until="load")
        tab.click("text=Start the playground")
        said(tab, "Ready")
        yield tab


@pytest.fixture
def started(loaded):
    "The same, with every control as it was in the beginning."
    loaded.set_viewport_size({"width": 1280, "height": 900})
    loaded.evaluate(
        """() => {
      const p = document.querySelector('.t2i-playground').playground;
      if (!p.stopButton.disabled) p.stop();
      document.documentElement.dataset.theme = 'light';
      document.querySelectorAll('.t2i-playground details').forEach(d => d.open = false);
      p.prompt.set('a blue and red dragon'); p.seed.value = 0;
      p.scale.show(2); p.sampler.value = 'dpmpp-2m'; p.say('Ready') }"""
    )
    loaded.problems.clear()
    return loaded


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
    early = opened.received
    assert not [u for u in early if re.search(r"\.(onnx|gz)|worker\.js|ort\.", u)]
    opened.click("text=Start the playground")
    said(opened, "Ready")
    files = [u for u in opened.received if re.search(r"\.(onnx|gz)", u)]
    assert len(files) == 5  # the runtime and four networks, the text encoder once
    assert 15e6 < sum(opened.received.values()) < 25e6 and opened.problems == []


def test_the_second_visit_loads_no_model_again(browser, book, tmp_path):
    asked = []

    class Counting(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    # a profile on the disk, and nothing that looks at every request: else no cache
    with serve(book, Counting) as address:
        context = browser.browser_type.launch_persistent_context(
            tmp_path / "profile", executable_path=find_chromium(), args=QUIET
        )
        tab = context.new_page()
        tab.set_default_timeout(PATIENCE)
        for _ in range(2):
            tab.goto(f"{address}/{PAGE}.html")
            tab.click("text=Start the playground")
            said(tab, "Ready")
        context.close()
    files = [path for path in asked if re.search(r"\.(onnx|gz)", path)]
    assert len(files) == len(set(files)) == 5


def test_the_page_draws_what_its_python_line_draws(started):
    choose(started, "both", steps=8, seed=5)
    started.fill(".t2i-prompt", PROMPT)
    started.click("button[type=submit]")
    said(started, "Drawn")
    for name in ("critters-32", "critters-32-gigagan"):
        card = started.locator(f".t2i-card[data-model='{name}']")
        card.locator("text=Copy Python").click()
        said(started, "Copied")
        line = started.evaluate("() => navigator.clipboard.readText()")
        assert f'sample(["{PROMPT}"], seed=5' in line
        made = {}
        exec(line, made)
        drawn = image(started, name)
        assert 127.5 * np.abs(drawn - made["image"].numpy()).mean() < 2, name
        with started.expect_download() as found:
            card.locator("text=Save PNG").click()
        assert found.value.suggested_filename.endswith("-seed5.png")
        saved = Image.open(io.BytesIO(found.value.path().read_bytes())).convert("RGB")
        expected = to_pil(made["image"], 8)
        assert saved.size == expected.size == (256, 256)
        levels = np.abs(np.asarray(saved, float) - np.asarray(expected, float))
        assert levels.mean() < 2
        verdict = card.locator(".t2i-verdict summary").text_content()
        assert re.search(r"finds \d of 4 stated", verdict)
    assert started.problems == []


def test_a_graphics_processor_that_is_slower_is_not_used(browser, book_address):
    "WebGPU by a program on the processor, which the page is told is a real one."
    more = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
    args = [a for a in QUIET if a != "--disable-gpu"] + more
    slow = browser.browser_type.launch(executable_path=find_chromium(), args=args)
    with guarded_tab(slow, book_address) as tab:
        tab.set_default_timeout(PATIENCE)
        asked, real = [], "!adapter.info?.isFallbackAdapter"
        tab.on("request", lambda r: asked.append(r.url))
        assert real in (SCRIPTS / "networks.js").read_text()
        replace(tab, "networks.js", lambda text: text.replace(real, "true"))
        tab.goto(f"{book_address}/{PAGE}.html", wait_until="load")
        if not tab.evaluate("async () => !!(await navigator.gpu?.requestAdapter())"):
            pytest.skip("this Chromium has no WebGPU")
        tab.click("text=Start the playground")
        said(tab, "Ready.")
        assert any("jspi.wasm" in u for u in asked)
        choose(tab, "imagen", steps=2, seed=3)
        tab.fill(".t2i-prompt", PROMPT)
        tab.click("button[type=submit]")
        said(tab, "Drawn")
        model = load_model("critters-32", "cpu")
        expected = model.sample([PROMPT], seed=3, num_steps=2)[0].numpy()
        assert 127.5 * np.abs(image(tab, "critters-32") - expected).mean() < 2
        assert tab.problems == []
    slow.close()


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
    started.click("text=Play the steps")
    started.locator("text=Pause").wait_for()
    started.locator("text=Play the steps").wait_for()
    assert slider.input_value() == "4" and started.evaluate(pixels) == last
    assert started.problems == []


def test_the_maps_change_from_step_to_step(started):
    choose(started, "imagen", steps=4)
    started.click("button[type=submit]")
    said(started, "Drawn")
    started.click("summary:has-text('steps')")
    words = started.locator(".t2i-maps figcaption").all_text_contents()
    assert words == "a blue and red dragon".split()
    pixels = """() => [...document.querySelectorAll('.t2i-maps canvas')].map(c =>
      [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data])"""
    last = np.array(started.evaluate(pixels), float)
    assert np.abs(last[1] - last[4]).mean() > 5  # blue and dragon are not used alike
    slider = started.locator("summary:has-text('steps') ~ .t2i-field input")
    slider.focus()
    started.keyboard.press("Home")
    first = np.array(started.evaluate(pixels), float)
    assert np.abs(first - last).mean() > 5


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
        (("a blue and red dragon with green eyes, " * 13)[:500], "Drawn"),
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
    assert started.locator(".t2i-words u").all_text_contents() == ["zebra"]
    started.fill(".t2i-prompt", PROMPT)
    assert started.locator(".t2i-words u").count() == 0


def test_attributes_are_chosen_instead_of_typed(started):
    started.click("summary:has-text('Choose attributes')")
    started.select_option("select[id$=species]", "owl")
    started.select_option("select[id$=body-colour]", "orange")
    assert started.input_value(".t2i-prompt") == "an orange and red owl"
    started.select_option("select[id$=second-colour]", "")
    assert started.input_value(".t2i-prompt") == "an orange owl"
    started.fill(".t2i-prompt", "a small green cat, sleeping")
    chosen = {"species": "cat", "body-colour": "green", "action": "sleeping"}
    for key, value in (chosen | {"size": "small", "facing": ""}).items():
        assert started.locator(f"select[id$={key}]").input_value() == value


def test_two_clicks_in_a_row_draw_the_second(started):
    choose(started, "both", steps=6, seed=1)
    started.click("button[type=submit]")
    choose(started, "both", steps=2, seed=2)
    started.click("button[type=submit]")
    said(started, "Drawn")
    assert started.evaluate(
        "() => document.querySelector('.t2i-playground').playground.frames.length == 2"
    )
    for name in ("critters-32", "critters-32-gigagan"):
        line = started.text_content(f"[data-model='{name}'] .t2i-python")
        assert "seed=2," in line
    assert started.problems == []


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
    assert started.problems == []


def test_a_walk_leads_to_the_other_prompt_and_back(started):
    choose(started, "gan")
    started.click("button[type=submit]")
    said(started, "Drawn")
    started.click("summary:has-text('latent space')")
    pixels = """async () => {
      const p = document.querySelector('.t2i-playground').playground;
      while (p.moving) await new Promise(r => setTimeout(r, 20));
      return [...p.moved.getContext('2d').getImageData(0, 0, 32, 32).data] }"""
    before = np.array(started.evaluate(pixels), float)
    slider = started.locator("label:has-text('towards it') + input")
    slider.focus()
    started.keyboard.press("End")
    after = np.array(started.evaluate(pixels), float)
    assert np.abs(after - before).mean() > 10
    started.fill("input[id$=another-prompt]", "a purpel cat")
    assert "purpel → purple" in started.text_content(
        "div:has(> .t2i-field > input[id$=another-prompt]) .t2i-words"
    )
    assert np.abs(np.array(started.evaluate(pixels), float) - after).mean() > 3
    started.click("text=Walk there and back")
    started.locator("text=Pause").wait_for()
    started.locator("text=Walk there and back").wait_for()
    assert slider.input_value() == "0"
    assert np.abs(np.array(started.evaluate(pixels), float) - before).mean() < 1
    assert started.problems == []


def test_the_keyboard_alone(opened):
    opened.focus("text=Start the playground")
    opened.keyboard.press("Enter")
    said(opened, "Ready")
    assert opened.evaluate("() => document.activeElement.className") == "t2i-prompt"
    opened.keyboard.press("ControlOrMeta+a")
    opened.keyboard.type("a red cat")
    choose(opened, "gan")
    opened.keyboard.press("Enter")
    said(opened, "Drawn")
    seen = []
    for _ in range(20):
        opened.keyboard.press("Tab")
        seen.append(
            opened.evaluate(
                """() => { const e = document.activeElement;
              const { outlineWidth, outlineStyle } = getComputedStyle(e);
              return [e.value || e.textContent, outlineStyle, outlineWidth] }"""
            )
        )
        if "latent space" in seen[-1][0]:
            break
    names = " | ".join(n for n, *_ in seen)
    for name in ("Choose attributes", "gigagan", "Settings", "Draw", "Save PNG"):
        assert name in names, names
    assert all(s == "solid" and float(w[:-2]) >= 2 for _, s, w in seen), seen
    opened.keyboard.press("Enter")
    opened.keyboard.press("Tab")
    label = "() => document.activeElement.labels[0].textContent"
    assert opened.evaluate(label) == "first direction"
    opened.keyboard.press("ArrowRight")
    assert opened.evaluate("() => Number(document.activeElement.value)") > 0
    assert opened.problems == []


def test_leaving_while_it_draws_leaves_no_error(opened, book_address):
    opened.click("text=Start the playground")
    said(opened, "Ready")
    choose(opened, "imagen", steps=30)
    opened.click("button[type=submit]")
    said(opened, "Imagen is drawing")
    opened.goto(f"{book_address}/nbs/90_notation.html", wait_until="load")
    opened.go_back(wait_until="load")
    opened.locator(".t2i-playground button").first.wait_for()
    assert opened.problems == []


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
    page.set_default_timeout(PATIENCE)
    page.goto(f"{book_address}/{PAGE}.html", wait_until="load")
    page.click("text=Start the playground")
    assert "not enough memory" in said(page, "There is")
    assert page.locator("text=Start the playground").is_enabled()


def test_too_little_memory_while_drawing_is_answered_by_a_message(page, book_address):
    once = """
const { generate } = Networks.prototype;
Networks.prototype.generate = async () => {
  Networks.prototype.generate = generate;
  throw new RangeError("Array buffer allocation failed");
};"""
    replace(page, "networks.js", lambda text: text + once)
    page.set_default_timeout(PATIENCE)
    page.goto(f"{book_address}/{PAGE}.html", wait_until="load")
    page.click("text=Start the playground")
    said(page, "Ready")
    choose(page, "gan")
    page.click("button[type=submit]")
    assert "not enough memory" in said(page, "There is")
    page.click("button[type=submit]")  # and it can be tried again
    said(page, "Drawn")


def replace(page, name: str, change):
    "Serve a changed script of the playground."
    body = change((SCRIPTS / name).read_text())
    answer = {"content_type": "text/javascript", "body": body}
    page.route(f"**/{name}*", lambda route: route.fulfill(**answer))


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


def test_axe_finds_nothing_serious_after_drawing(started):
    choose(started, "both", steps=2)
    started.fill(".t2i-prompt", "a blue and purpel dragn with green eyes")
    started.click("button[type=submit]")
    said(started, "Drawn")
    opened = "document.querySelectorAll('.t2i-playground details')"
    started.evaluate(f"() => {opened}.forEach(d => d.open = true)")
    started.evaluate("axe => (0, eval)(axe)", axe_core())
    for mode in ("light", "dark"):
        found = started.evaluate(
            """async (mode) => {
          Object.assign(document.documentElement.dataset, { theme: mode, mode });
          await new Promise(done => setTimeout(done, 400));
          const { violations } = await axe.run('.t2i-playground');
          return violations.map(v => `${v.impact}, ${v.id}: ${v.nodes[0].html}`) }""",
            mode,
        )
        assert not [f for f in found if re.match("critical|serious", f)], (mode, found)


def test_every_control_has_a_name(started):
    nameless = started.evaluate(
        """() => [...document.querySelectorAll(
          '.t2i-playground :is(input, select, button, canvas, progress)')]
          .filter(e => !(e.labels?.length || e.textContent.trim() ||
                         e.getAttribute('aria-label'))).map(e => e.outerHTML)"""
    )
    assert nameless == []


def test_the_first_page_has_a_small_one(page, book_address):
    page.set_default_timeout(PATIENCE)
    page.goto(f"{book_address}/nbs/index.html", wait_until="load")
    page.click("text=Start the playground")
    said(page, "Ready")
    page.fill(".t2i-prompt", PROMPT)
    page.keyboard.press("Enter")
    said(page, "Drawn")
    assert page.locator(".t2i-card").count() == 2 and page.problems == []
