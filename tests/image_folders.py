"Folders of captioned images, for the tests of what reads them."

import json

from t2i_tutorial import critters
from t2i_tutorial.core import to_pil


def write_images(folder, n=12, size=32):
    "A folder of creatures with their captions, as chapter 6 reads it."
    drawn = critters.sample_critters(n, size, seed=3, split="val")
    folder.mkdir()
    lines = []
    for i, (image, caption) in enumerate(zip(drawn.images, drawn.captions)):
        to_pil(image).save(folder / f"{i:02}.png")
        lines.append(json.dumps({"file_name": f"{i:02}.png", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder
