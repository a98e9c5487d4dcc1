"""Make the README's images, the playground's still one, the preview of a link and the
cover of the EPUB.

With the bundled models.
"""

import io
from pathlib import Path
from textwrap import wrap

import matplotlib.pyplot as plt
import torch

from t2i_tutorial import GigaGAN, Imagen, show_images
from t2i_tutorial.core import make_grid, to_pil

SUBTITLE = "A small GigaGAN and a small Imagen, line by line"
CENTRE = {"ha": "center", "va": "center"}
STATIC = Path(__file__).resolve().parent.parent / "_static"
imagen = Imagen.from_pretrained("critters-32", "cpu")
gan = GigaGAN.from_pretrained("critters-32-gigagan", "cpu")
prompts = list(imagen.sample_prompts)
images = {
    "uncurated": imagen.sample(prompts, num_steps=20, seed=0),
    "uncurated-gigagan": gan.sample(prompts, seed=0),
}
for name, batch in images.items():
    file = io.BytesIO()
    figure = show_images(batch, prompts, columns=4, scale=5)
    figure.savefig(file, format="png", facecolor="white")
    (STATIC / f"{name}.png").write_bytes(file.getvalue())
both = make_grid(torch.cat([*images.values()]), columns=8)
to_pil(both).save(STATIC.parent / "_ext" / "static" / "playground" / "still.png")


def add_captioned(fig, place: tuple, image, prompt: str, width: int, size: int):
    "An image with its prompt below, in lines of so many characters."
    axis = fig.add_axes(place, xticks=[], yticks=[])
    axis.imshow(to_pil(image, enlarge=8), interpolation="nearest")
    axis.set_frame_on(False)
    axis.set_xlabel("\n".join(wrap(prompt, width)), fontsize=size, color="#555555")


fig = plt.figure(figsize=(12, 6.3), dpi=100, facecolor="white")
fig.text(0.06, 0.8, "Text to Image from Scratch", fontsize=44, weight="bold")
fig.text(0.06, 0.7, SUBTITLE, fontsize=24)
for k, (prompt, image) in enumerate(zip(prompts[:4], images["uncurated"])):
    place = (0.06 + 0.225 * k, 0.19, 0.205, 0.39)
    add_captioned(fig, place, image, prompt, width=24, size=13)
fig.savefig(STATIC / "preview.png", facecolor="white")

fig = plt.figure(figsize=(12, 16), dpi=100, facecolor="white")
fig.text(0.5, 0.93, "Text to Image\nfrom Scratch", size=60, weight="bold", **CENTRE)
fig.text(0.5, 0.82, SUBTITLE, size=26, **CENTRE)
for k, (prompt, image) in enumerate(zip(prompts[:6], images["uncurated"])):
    place = (0.08 + 0.45 * (k % 2), 0.545 - 0.245 * (k // 2), 0.39, 0.19)
    add_captioned(fig, place, image, prompt, width=28, size=16)
fig.savefig(STATIC / "cover.png", facecolor="white")
