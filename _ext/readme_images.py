"""Make the README's images, and the playground's still one, with the bundled models."""

import io
from pathlib import Path

import torch

from t2i_tutorial import GigaGAN, Imagen, show_images
from t2i_tutorial.core import make_grid, to_pil

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
