"""The interactive figures: in Chromium, from the built book, with the keyboard."""

import json
import re

import pytest
import torch

from t2i_tutorial.core import UserError, interactive_figure

FIGURES = {
    "nbs/05_first_gan": "first-gan",
    "nbs/08_attention": "attention",
    "nbs/11b_quality": "precision-recall",
    "nbs/14_training": "ema",
    "nbs/21_filter_bank": "filter-bank",
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


def computed(page, name: str, body: str, *given):
    "What JavaScript with the figure's module `m` returns, as if the page asked for it."
    return page.evaluate(
        f"""async (given) => {{
        const m = await import(
          new URL('../_static/figures/{name}.js', location.href));
        return (({body}))(...given) }}""",
        given,
    )


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


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
    got = computed(
        page,
        "guidance",
        "(data, scale) => data.start.map(z => m.trajectory(z, scale, data).at(-1))",
        data,
        3.0,
    )
    assert (tensor(got) - x).abs().max() < 1e-6
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


@pytest.mark.parametrize(
    "groups, spread, offset, outlier",
    [(3, 1.0, 0.0, 0.0), (1, 0.3, 0.0, 0.0), (3, 1.0, 3.0, 4.0)],
)
def test_precision_and_its_relatives_are_those_of_the_library(
    opened, groups, spread, offset, outlier
):
    from t2i_tutorial.evaluation.quality import precision_recall

    page, figure = opened("precision-recall")
    data = data_of(page, "precision-recall")
    real, noise, centres = (tensor(data[k]) for k in ("real", "noise", "centres"))
    if outlier:
        real[-1] = outlier / 2**0.5
    kinds = centres[torch.arange(len(noise)) % groups]
    generated = kinds + spread * data["std"] * noise + offset / 2**0.5
    measures = precision_recall(generated, real, data["k"], 0)
    settings = dict(groups=groups, spread=spread, offset=offset, outlier=outlier)
    got = computed(
        page,
        "precision-recall",
        "(set, data) => m.neighbourMeasures(m.clouds(set, data), data.k).values",
        settings,
        data,
    )
    assert got == pytest.approx({k: v.value for k, v in measures.items()}, abs=1e-9)
    for slider, value in zip(figure.locator("input").all(), settings.values()):
        slider.fill(f"{value:g}")
    shown = figure.locator("button").all_text_contents()
    assert shown == [f"{k}{v.value:.2f}" for k, v in measures.items()]
    said = figure.locator(".t2i-said").text_content()
    assert f"density {measures['density'].value:.2f}" in said


def test_an_outlier_deceives_precision_and_not_density(opened):
    page, figure = opened("precision-recall")
    _, _, offset, outlier = figure.locator("input").all()

    def values():
        said = figure.locator(".t2i-said").text_content()
        return {k: float(v) for k, v in re.findall(r"(\w+) (\d\.\d\d)", said)}

    move(offset, "End")
    before = values()
    outlier.fill("4")
    after = values()
    assert before["precision"] < 0.3 and after["precision"] > 0.95
    assert after["density"] < before["density"] + 1 / 3 + 0.01
    buttons = figure.locator("button")
    for i, counted in enumerate(["missed", "missed", "missed", "empty"]):
        buttons.nth(i).click()
        assert buttons.nth(i).get_attribute("aria-pressed") == "true"
        assert figure.locator(f"circle.{counted}").count() > 0


@pytest.mark.parametrize(
    "decay, warmup", [(0.98, 10), (0.9, 10), (0.98, 1), (0.99, 50)]
)
def test_the_average_is_that_of_the_library(opened, decay, warmup):
    from t2i_tutorial.training import EMA

    class WarmedUp(EMA):
        beta = property(
            lambda self: min(
                decay, (1 + self.num_updates) / (warmup + self.num_updates)
            )
        )

    page, figure = opened("ema")
    path = tensor(data_of(page, "ema")["path"])
    weights = torch.nn.Parameter(path[0].clone())
    ema = (EMA if warmup == 10 else WarmedUp)({"w": weights}, decay)
    wanted = [path[0]]
    for point in path[1:]:
        weights.data.copy_(point)
        ema.update()
        wanted.append(ema.average["w"].clone())
    got = computed(page, "ema", "m.averages", path.tolist(), decay, warmup)
    assert (tensor(got) - torch.stack(wanted)).abs().max() < 1e-9
    data, inputs = data_of(page, "ema"), figure.locator("input").all()
    inputs[0].fill(f"{data['decays'].index(decay)}")
    inputs[1].fill(f"{data['warmups'].index(warmup)}")
    said = figure.locator(".t2i-said").text_content()
    assert f"the average {wanted[-1].norm():.2f}" in said
    assert f"β is now {ema.beta:.3f}" in said or warmup == 1
    if (decay, warmup) == (0.98, 10):
        assert "0.98 after 440 updates" in said


def test_the_bank_mixes_and_filters_as_the_layer_does(opened):
    from t2i_tutorial.gan.filter_bank import FilterBankConv2d, effective_num_kernels

    page, figure = opened("filter-bank")
    data = data_of(page, "filter-bank")
    layer = FilterBankConv2d(1, 1, 5, 2, num_kernels=4).double()
    with torch.no_grad():
        layer.weight.copy_(tensor(data["kernels"])[:, None, None])
        layer.kernel_selector.weight.copy_(tensor(data["selector"]) * 2**0.5)
        layer.style.weight.zero_()
        w = tensor([[1.5, -0.75]])
        weights = layer.kernel_weights(w)
        output = layer(tensor(data["image"])[None, None], w)[0, 0]
    got, filtered = computed(
        page,
        "filter-bank",
        """(w, data) => {
        const weights = m.kernelWeights(w, data.selector);
        const { kernel } = m.mixKernels(weights, data.kernels);
        return [weights, m.convolve(data.image, kernel)] }""",
        w[0].tolist(),
        data,
    )
    assert (tensor(got) - weights[0]).abs().max() < 1e-9
    assert (tensor(filtered) - output).abs().max() < 1e-5
    for slider, value in zip(figure.locator("input").all(), w[0].tolist()):
        slider.fill(f"{value:g}")
    said = figure.locator(".t2i-said").text_content().replace("−", "-")
    for name, a in zip(data["names"], weights[0].tolist()):
        assert f"{name} {a:.2f}" in said
    assert f"effective kernels: {effective_num_kernels(weights)['each']:.2f}" in said
    assert f"from {output.min():.2f} (black) to {output.max():.2f} (white)" in said
    pixels = page.evaluate(
        """() => [...[...document.querySelectorAll('[data-figure=filter-bank] canvas')]
        .at(-1).getContext('2d').getImageData(0, 0, 32, 32).data]"""
    )
    grey = tensor(pixels).view(32, 32, 4)[..., 0] / 255
    span = output.max() - output.min()
    assert (grey - (output - output.min()) / span).abs().max() < 0.01


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
