"""Draw the book's logo and favicon with the critters chapter's own code.

`python _ext/logo.py`. A test says when they are out of date.
"""

from pathlib import Path

from einops import rearrange
from PIL import Image

from t2i_tutorial.critters import render_logo_rgba

STATIC = Path(__file__).resolve().parent.parent / "_static"
for name, size in [("logo.png", 256), ("favicon.png", 48)]:
    Image.fromarray(
        rearrange(render_logo_rgba(size), "c h w -> h w c").numpy(), "RGBA"
    ).save(STATIC / name, optimize=True)
