"""What does one setting do from some update on? The same training, with another value.

    OMP_NUM_THREADS=1 python benchmarks/change_setting.py RUN SETTING=VALUE [...]
        --step STEP --updates N --output FOLDER [--preset cpu-32]

RUN is the folder of a GigaGAN's training that kept its checkpoints. The one of STEP is
copied to FOLDER (weights, averages, optimizers, random generators) and trained on for N
updates with the settings that are given; all others stay. So FOLDER and RUN differ by
these settings alone, and only from STEP on. A stopped command goes on when repeated.
`benchmarks/snapshots.py` measures both.
"""

import argparse
import shutil
from pathlib import Path

from t2i_tutorial.checkpoints import list_checkpoints
from t2i_tutorial.core import UserError, load_json, save_json
from t2i_tutorial.experiments import flat_settings
from t2i_tutorial.gan.gigagan import gigagan_preset, train_gigagan


def copy_checkpoint(path: Path, folder: Path, settings: dict) -> None:
    "The checkpoint, as if it had been trained with these settings."
    target = folder / "checkpoints" / path.name
    if list_checkpoints(folder):
        return
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(path, part)
    state = load_json(part / "state.json")
    state["settings"] |= settings
    save_json(part / "state.json", state)
    part.replace(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a training")
    parser.add_argument("settings", nargs="+", metavar="SETTING=VALUE")
    parser.add_argument("--step", type=int, required=True, help="of its checkpoint")
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--preset", default="cpu-32")
    options = parser.parse_args()
    saved = list_checkpoints(options.run)
    if options.step not in saved:
        raise UserError(f"{str(options.run)!r} has no checkpoint {options.step}")
    changed = gigagan_preset(options.preset, options.settings)
    new, old = (
        flat_settings(p.model_config) for p in (changed, gigagan_preset(options.preset))
    )
    differing = {k: v for k, v in new.items() if v != old[k]}
    copy_checkpoint(saved[options.step], options.output, differing)
    last = options.step + options.updates
    train_gigagan(
        options.preset,
        folder=options.output,
        overrides=[
            *options.settings,
            f"train.max_steps={last}",
            "train.max_checkpoints=60",
        ],
        resume=True,
    )


if __name__ == "__main__":
    main()
