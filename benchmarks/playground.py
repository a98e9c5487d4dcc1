"""What the playground costs: seconds an image in the browser, by onnxruntime in Python
and by PyTorch, on one machine, one thread each, one after the other.

    make book && OMP_NUM_THREADS=1 python benchmarks/playground.py

It opens the built book in Chromium and lets the page draw; writes
t2i_tutorial/results/playground.json, which the chapter shows as ratios.
"""

import argparse
import functools
import http.server
import shutil
import statistics
import threading
from datetime import date
from pathlib import Path
from time import perf_counter

import torch

from t2i_tutorial.clip import hardware_info
from t2i_tutorial.core import RESULTS_DIR, save_json
from t2i_tutorial.hub import load_model, prompt_generators, randn_per_prompt
from t2i_tutorial.playground import ExportedModel

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "_build" / "html"
MODELS = BOOK / "_static" / "playground" / "models"
PROMPT = "a blue and red dragon with green eyes"
NUM_STEPS = 20
IMAGEN, GAN = "critters-32", "critters-32-gigagan"
KINDS = {IMAGEN: f"Imagen, {NUM_STEPS} guided steps", GAN: "GigaGAN, one pass"}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def median_seconds(draw, repeats: int) -> float:
    "Of some repetitions, after one that warms up."
    draw()
    seconds = []
    for _ in range(repeats):
        start = perf_counter()
        draw()
        seconds.append(perf_counter() - start)
    return statistics.median(seconds)


def by_pytorch(name: str, repeats: int) -> float:
    model = load_model(name, "cpu")
    options = {"num_steps": NUM_STEPS} if name == IMAGEN else {}
    return median_seconds(lambda: model.sample([PROMPT], **options), repeats)


def by_onnxruntime(name: str, repeats: int) -> float:
    model, encoder = ExportedModel(MODELS / name), load_model(name, "cpu").encoder
    ids = encoder.tokenizer.encode([PROMPT])[0][0].tolist()
    s = model.settings

    def draw():
        text, generators = model.encode(ids), prompt_generators([PROMPT], 0)
        if name == GAN:
            z = randn_per_prompt(generators, (s["z_dim"],)).numpy()
            return model.generate(text, z, 1.0)
        shape = (3, s["size"], s["size"])
        steps = model.denoise(
            text,
            lambda: randn_per_prompt(generators, shape).numpy(),
            s["guidance_scale"],
            NUM_STEPS,
        )
        return [x for _, x, _ in steps][-1]

    return median_seconds(draw, repeats)


ASK = """async ([name, repeats, prompt, numSteps]) => {
  const p = document.querySelector('.t2i-playground').playground;
  const seconds = [];
  for (let i = 0; i <= repeats; i++) {
    Object.assign(p.prompt, { value: prompt });
    p.model.querySelector(`input[value='${name}']`).checked = true;
    p.steps.value = numSteps;
    await p.draw();
    seconds.push(Number(p.cards[name].seconds));
  }
  return seconds.slice(1);
}"""
MOVE = """async (n) => {
  const p = document.querySelector('.t2i-playground').playground;
  const start = performance.now();
  for (let i = 0; i < n; i++) { p.first.value = i / n; await p.move(); }
  return n / ((performance.now() - start) / 1000);
}"""


def by_browser(repeats: int) -> dict:
    "Seconds of the page's own drawing, of loading it, and images a second in a drag."
    from playwright.sync_api import sync_playwright

    chromium = next(
        p for n in ("chromium", "chromium-browser") if (p := shutil.which(n))
    )
    handler = functools.partial(Quiet, directory=str(BOOK))
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        sync_playwright() as p,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = ["--no-sandbox", "--disable-gpu"]
        browser = p.chromium.launch(executable_path=chromium, args=options)
        page = browser.new_page()
        page.set_default_timeout(600_000)
        page.goto(f"http://127.0.0.1:{server.server_port}/nbs/41_playground.html")
        start = perf_counter()
        page.click("text=Start the playground")
        ready = "document.querySelector('.t2i-status').textContent.startsWith('Ready')"
        page.wait_for_function(f"() => {ready}")
        found = {"load": perf_counter() - start, "version": browser.version}
        for name in KINDS:
            seconds = page.evaluate(ASK, [name, repeats, PROMPT, NUM_STEPS])
            found[name] = statistics.median(seconds)
        found["moves_per_second"] = page.evaluate(MOVE, 30)
        browser.close()
        server.shutdown()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    output = RESULTS_DIR / "playground.json"
    parser.add_argument("--output", type=Path, default=output)
    args = parser.parse_args()
    torch.set_num_threads(1)
    browser = by_browser(args.repeats)
    seconds = {
        title: {
            "pytorch": by_pytorch(name, args.repeats),
            "onnxruntime": by_onnxruntime(name, args.repeats),
            "browser": browser[name],
        }
        for name, title in KINDS.items()
    }
    files = {str(p.relative_to(MODELS)): p.stat().st_size for p in MODELS.rglob("*.*")}
    record = {
        "recorded": date.today().isoformat(),
        "hardware": hardware_info(),
        "browser": f"Chromium {browser['version']}, headless",
        "seconds": seconds,
        "load_seconds": browser["load"],
        "moves_per_second": browser["moves_per_second"],
        "bytes": dict(sorted(files.items())),
    }
    save_json(args.output, record)
    print(record)


if __name__ == "__main__":
    main()
