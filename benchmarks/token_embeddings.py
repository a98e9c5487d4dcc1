"""Does a small Imagen learn faster from word vectors beside contextual ones?

    OMP_NUM_THREADS=1 python benchmarks/token_embeddings.py [--output FILE]

Two short trainings with one seed that differ in the text encoder only: the contrastive
model's token vectors, and the same beside the embeddings of the tokens
("+token-embeddings"). A run that the file already holds is not made again.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from t2i_tutorial.core import RESULTS_DIR
from t2i_tutorial.diffusion.diagnostics import (
    IMAGEN_ABLATION_PRESET,
    run_loss_ablation,
)

ENCODERS = {
    "contextual": "critters-clip",
    "contextual and embeddings": "critters-clip+token-embeddings",
}
VARIANTS = {
    f"{name}, seed {seed}": {"text_encoder": encoder, "train.seed": seed}
    for seed in (0,)  # more seeds: more runs
    for name, encoder in ENCODERS.items()
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = RESULTS_DIR / "token-embeddings-ablation.json"
    parser.add_argument("--output", type=Path, default=default)
    options = parser.parse_args()
    short = IMAGEN_ABLATION_PRESET
    longer = replace(short.train_config, max_steps=800)
    preset = replace(short, train_config=longer)
    run_loss_ablation(options.output, VARIANTS, preset, n=512)


if __name__ == "__main__":
    main()
