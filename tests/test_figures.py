"""The interactive figures: in Chromium, from the built book, with the keyboard."""

import json
import re

import pytest
import torch

from t2i_tutorial.core import UserError, interactive_figure

FIGURES = {
    "nbs/05_first_gan": "first-gan",
    "nbs/08_attention": "attention",
    "nbs/33_guidance": "guidance",
    "nbs/34_samplers": "scrubber",
}


def data_of(page, name: str) -> dict:
    return json.loads(page.text_content(f"[data-figure={name}] script"))


@pytest.fixture
def opened(page, book_address):
    "A chapter with its figure alive: (page, figure)."
    page.set_default_timeout(60_000)

    def open_figure(name: str):
        (chapter,) = (c for c, n in FIGURES.items() if n == name)
        page.goto(f"{book_address}/{chapter}.html", wait_until="load")
        figure = page.locator(f"[data-figure={name}]")
        figure.locator(".t2i-stage").wait_for()
        return page, figure

    return open_figure


def move(slider, key: str, times: int = 1) -> None:
    slider.focus()
    for _ in range(times):
        slider.press(key)


@pytest.mark.parametrize("name", FIGURES.values())
def test_a_figure_lives_and_says_what_it_shows(opened, name):
    page, figure = opened(name)
    assert not figure.locator("img").is_visible()
    assert len(figure.locator(".t2i-said").text_content()) > 20
    for slider in figure.locator("input").all():
        before = figure.locator(".t2i-said").text_content()
        value = slider.get_attribute("aria-valuetext")
        label = figure.locator(f"label[for={slider.get_attribute('id')}]")
        assert label.text_content() and value
        key = "ArrowLeft" if slider.input_value() != "0" else "ArrowRight"
        move(slider, key)
        assert slider.get_attribute("aria-valuetext") != value
        assert figure.locator(".t2i-said").text_content() != before
    assert page.problems == []


@pytest.mark.parametrize("chapter, name", FIGURES.items())
def test_without_javascript_the_still_figure_is_there(
    browser, book_address, chapter, name
):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(f"{book_address}/{chapter}.html", wait_until="load")
    still = tab.locator(f"[data-figure={name}] img")
    assert still.is_visible() and len(still.get_attribute("alt")) > 20
    assert tab.locator(f"figure:has([data-figure={name}]) figcaption").count() == 1
    context.close()


def test_the_page_samples_in_the_plane_as_python_does(opened):
    from t2i_tutorial.diffusion.guidance import apply_cfg

    page, figure = opened("guidance")
    data = data_of(page, "guidance")
    start, own, everything = (
        torch.tensor(data[k], dtype=torch.float64)
        for k in ("start", "own", "everything")
    )

    def mean(x, alpha, sigma, means):
        variance = (alpha * data["std"]) ** 2 + sigma**2
        offset = x[:, None] - alpha * means
        weight = (-offset.square().sum(-1) / (2 * variance)).softmax(1)
        each = means + data["std"] ** 2 * alpha / variance * offset
        return (weight[..., None] * each).sum(1)

    x, levels = start, data["levels"]
    for (alpha, sigma), (a2, s2) in zip(levels, [*levels[1:], (1.0, 0.0)]):
        c, u = (mean(x, alpha, sigma, m) for m in (own, everything))
        x0 = apply_cfg(c, u, 3.0)
        x = a2 * x0 + s2 * (x - alpha * x0) / sigma
    got = page.evaluate(
        """async ([data, scale]) => {
        const { trajectory } = await import(
          new URL('../_static/figures/guidance.js', location.href));
        return data.start.map(z => trajectory(z, scale, data).at(-1)) }""",
        [data, 3.0],
    )
    assert (torch.tensor(got, dtype=torch.float64) - x).abs().max() < 1e-6
    scale = figure.locator("input").first
    move(scale, "End")
    said = figure.locator(".t2i-said").text_content()
    shares = [int(s) for s in re.findall(r"(\d+) %", said)]
    assert min(shares[:3]) < 5 and shares[3] == 0 and shares[4] > 30


def test_the_first_gan_shows_the_step_and_the_strength(opened):
    page, figure = opened("first-gan")
    data = data_of(page, "first-gan")
    gamma, step = figure.locator("input").all()
    curve = figure.locator("path.score")
    before = curve.get_attribute("d")
    steep = r"Steepest slope of D: ([\d.]+)"
    slopes = []
    for _ in data["runs"]:
        said = figure.locator(".t2i-said").text_content()
        slopes.append(float(re.search(steep, said)[1]))
        move(gamma, "ArrowRight")
    assert slopes[0] > slopes[-1] and curve.get_attribute("d") != before
    move(step, "Home")
    assert step.get_attribute("aria-valuetext") == str(data["steps"][0])
    assert figure.locator("circle.dot").count() == len(data["runs"][0]["dots"][0])


def test_the_scrubber_draws_each_step(opened):
    page, figure = opened("scrubber")
    scale, step = figure.locator("input").all()
    pixels = """() => [...document.querySelectorAll('[data-figure=scrubber] canvas')]
      .map(c => [...c.getContext('2d').getImageData(0, 0, 32, 32).data].join())"""
    page.wait_for_function(f"() => ({pixels})()[1].replace(/[0,]/g, '')")
    last = page.evaluate(pixels)
    move(step, "Home")
    first = page.evaluate(pixels)
    assert first[0] != last[0] and first[1] != last[1]
    move(scale, "End")
    strong = page.evaluate(pixels)
    assert strong[0] == first[0], "all begin with the same noise"
    assert strong[1] != first[1]


def test_attention_follows_the_pointer_and_the_arrow_keys(opened):
    page, figure = opened("attention")
    data = data_of(page, "attention")
    canvas, said = figure.locator("canvas"), figure.locator(".t2i-said")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 2.5 / 16, box["y"] + 1)
    assert "Row 1, column 3 " in said.text_content()
    canvas.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    assert "Row 2, column 2 " in said.text_content()
    weight = data["maps"][0][1][1]
    assert f"{data['words'][0]} {weight:.2f}" in said.text_content()
    buttons = figure.locator("button")
    assert buttons.count() == len(data["words"])
    buttons.nth(2).click()
    assert f"“{data['words'][2]}”" in said.text_content()
    assert buttons.nth(2).get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("name", FIGURES.values())
def test_a_figure_fits_a_telephone(opened, page, mode, name):
    page.set_viewport_size({"width": 390, "height": 844})
    page, figure = opened(name)
    page.evaluate("(m) => document.documentElement.dataset.theme = m", mode)
    wide = figure.evaluate(
        """f => [...f.querySelectorAll('*')].filter(e => e.getClientRects().length &&
        e.getBoundingClientRect().right > 391).length"""
    )
    assert wide == 0
    small = figure.evaluate(
        """f => [...f.querySelectorAll('svg')].map(s => 13 *
        s.getBoundingClientRect().width / s.viewBox.baseVal.width)"""
    )
    assert all(size >= 9 for size in small)


# ---- in Python


def test_a_figure_carries_its_data_and_a_still_image():
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    figure, _ = plt.subplots(figsize=(1, 1))
    data = {"x": torch.tensor([1 / 3, 2.0]), "y": ("</script>", None, True, 3)}
    html = interactive_figure("a-b", data, figure, 'a "still" <one>').data
    inside = re.search(r'<script type="application/json">(.*?)</script>', html)[1]
    assert json.loads(inside) == {"x": [0.3333, 2.0], "y": ["</script>", None, True, 3]}
    assert 'alt="a &quot;still&quot; &lt;one&gt;"' in html
    assert "figures/a-b.js" in html and "data:image/png;base64," in html
    assert not plt.get_fignums(), "the still figure is not shown a second time"


def test_a_figure_refuses_nan():
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    figure, _ = plt.subplots(figsize=(1, 1))
    with pytest.raises(UserError, match="NaN"):
        interactive_figure("a", {"x": float("nan")}, figure, "a still figure")
