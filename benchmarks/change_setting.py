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
from pathlib import Path

from t2i_tutorial.checkpoints import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from t2i_tutorial.core import UserError
from t2i_tutorial.experiments import flat_settings
from t2i_tutorial.gan.gigagan import gigagan_preset, train_gigagan


def changes(new, old) -> dict:
    "The settings in which two configurations differ, with their new values."
    before = flat_settings(old)
    return {k: v for k, v in flat_settings(new).items() if v != before[k]}


def copy_checkpoint(path: Path, folder: Path, settings: dict, config: dict) -> None:
    "The checkpoint, as if it had been trained with these settings and this config."
    if list_checkpoints(folder):
        return
    saved = load_checkpoint(path)
    state = saved.state | {"settings": saved.state["settings"] | settings}
    copied = Checkpoint(saved.tensors, state, saved.config | config)
    save_checkpoint(folder / "checkpoints" / path.name, copied)


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
    last = options.step + options.updates
    settings = [*options.settings, f"train.max_steps={last}"]
    new, old = gigagan_preset(options.preset, settings), gigagan_preset(options.preset)
    copy_checkpoint(
        saved[options.step],
        options.output,
        changes(new.model_config, old.model_config),
        changes(new.train_config, old.train_config),
    )
    train_gigagan(
        options.preset,
        folder=options.output,
        overrides=[*settings, "train.max_checkpoints=60"],
        resume=True,
    )


if __name__ == "__main__":
    main()
