"""An image of equal quality: core-seconds against MMD, by the steps of each sampler.

    python equal_quality.py [--json FILE] [--adapters NAME ...] [--minutes 30]
        [--num-prompts 256] [--short]

The snapshots that `same_minutes.py` left are sampled with few to many steps, each model
by its own sampler. The figure that counts: core-seconds an image at the fewest steps
whose MMD is at most 5 % above the model's best. Our model is also sampled by 1000
ancestral steps, the sampler of the original Imagen, for the ratio within one model.
"""

from adapters import NAMES, NUM_IMAGES, TINY
from harness import (
    WORK,
    Rows,
    Worker,
    alternate,
    choose_adapters,
    found_peers,
    head,
    parser,
    record_path,
    start_workers,
)
from same_minutes import COMPARED, PARAMETERS

WITHIN = 1.05  # of the best MMD


def queue(worker, rows: Rows, name: str, options):
    "The sampler settings of one model, few steps first."
    scale = options.guidance_scale.get(name)
    for steps in worker.about["step_counts"]:
        if options.short:
            steps = min(steps, 3)
        key = f"{name} | {steps or 'own'} steps"

        def measure(steps=steps, key=key):
            found = worker.ask(
                "judge", n=options.num_prompts, steps=steps, guidance_scale=scale
            )
            each = found["cpu_seconds"] / options.num_prompts
            rows.add(
                key,
                {"adapter": name, "steps": steps, "seconds_an_image": each, **found},
            )

        if key not in rows:
            yield measure


def equal_quality(rows: dict[str, dict]) -> dict[str, dict]:
    "For each model: its best MMD, and the cheapest row that is within 5 % of it."
    found = {}
    for name in dict.fromkeys(r["adapter"] for r in rows.values()):
        own = [r for r in rows.values() if r["adapter"] == name]
        best = min(r["mmd"]["value"] for r in own)
        near = [r for r in own if r["mmd"]["value"] <= WITHIN * best]
        chosen = min(near, key=lambda r: r["seconds_an_image"])
        found[name] = {
            "best_mmd": best,
            "steps": chosen["steps"],
            "seconds_an_image": chosen["seconds_an_image"],
        }
    return found


def main() -> None:
    options = parser(__doc__, "peers-equal-quality.json", COMPARED)
    options.add_argument("--minutes", type=float, default=30)
    options.add_argument("--num-prompts", type=int, default=256)
    options = options.parse_args()
    parameters, images, options.guidance_scale = PARAMETERS, NUM_IMAGES, {}
    if options.short:
        options.minutes, options.num_prompts = 0.05, 24
        parameters, images = TINY, 512
    settings = {
        "minutes": options.minutes,
        "num_prompts": options.num_prompts,
        "parameters": parameters,
        "within": WITHIN,
    }
    rows = Rows(record_path(options), settings, head())
    needs = {name: peer for name, (_, _, peer) in NAMES.items()}
    usable, left_out = choose_adapters(options.adapters, needs, found_peers())
    work = WORK / ("short" if options.short else "same-minutes")

    def start(name: str) -> Worker:
        mark = f"{60 * options.minutes:g}"
        runs = (name, f"{name}, {options.minutes:g} min")
        files = [work / f"{run}-{mark}.pt".replace(" ", "") for run in runs]
        snapshot = next((f for f in files if f.exists()), None)
        if snapshot is None:
            raise RuntimeError(f"{name}: no snapshot; run same_minutes.py first")
        worker = Worker(name, "--parameters", parameters, "--num-images", images)
        worker.ask("load", path=str(snapshot))
        return worker

    workers, failed = start_workers(usable, start)
    rows.note("left_out", left_out | failed)
    queues = {name: queue(w, rows, name, options) for name, w in workers.items()}
    for _, turn in alternate(queues):
        turn()
    for worker in workers.values():
        worker.close()
    rows.note("equal_quality", equal_quality(rows.record["rows"]))


if __name__ == "__main__":
    main()
