"""A GAN's step, ours against gigagan-pytorch: images a second and peak memory.

    python gan_step.py [--json FILE] [--rounds 5] [--seconds 60] [--short]

One update of the discriminator and one of the generator, at equal numbers of trained
parameters, batch 32, 32 pixels, the same images and captions, one thread, in turns.
Images a second are those of core-seconds; the peak is that of PyTorch's allocations
during an update, beyond what was there before. Ours is in the phase where both networks
are trained and every term of the loss is on.
"""

from statistics import median

from adapters import NAMES, TINY
from harness import (
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

COMPARED = ["ours-gigagan", "gigagan-pytorch"]
PARAMETERS = 2_474_262  # of our generator and discriminator, `cpu-32`


def main() -> None:
    options = parser(__doc__, "peers-gan-step.json", COMPARED)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=60)
    options = options.parse_args()
    parameters, images, more = PARAMETERS, 4096, []
    if options.short:
        more = ["--batch-size", 2]
        parameters, images, options.rounds, options.seconds = TINY, 512, 2, 2
    settings = {"parameters": parameters, "seconds": options.seconds}
    rows = Rows(record_path(options), settings, head())
    needs = {name: peer for name, (_, _, peer) in NAMES.items()}
    usable, left_out = choose_adapters(options.adapters, needs, found_peers())
    workers, failed = start_workers(
        usable,
        lambda n: Worker(n, "--parameters", parameters, "--num-images", images, *more),
    )
    rows.note("left_out", left_out | failed)

    def queue(worker, name: str):
        for k in range(options.rounds):
            key = f"{name} | round {k}"

            def measure(key=key):
                told = worker.ask("train", core_seconds=options.seconds)
                a_second = worker.about["batch_size"] / told["seconds_an_update"]
                about = {"adapter": name, "parameters": worker.about["parameters"]}
                rows.add(key, about | {"images_a_second": a_second} | told)

            if key not in rows:
                yield measure
        key = f"{name} | memory"
        if key not in rows:
            yield lambda: rows.add(key, {"adapter": name} | worker.ask("peak"))

    for _, turn in alternate({n: queue(w, n) for n, w in workers.items()}):
        turn()
    for worker in workers.values():
        worker.close()
    found = {}
    for name in usable:
        rates = [
            r["images_a_second"]
            for r in rows.record["rows"].values()
            if r["adapter"] == name and "images_a_second" in r
        ]
        if rates:
            found[name] = {"images_a_second": median(rates)}
            found[name] |= {"peak_bytes": rows[f"{name} | memory"]["peak_bytes"]}
    rows.note("summary", found)


if __name__ == "__main__":
    main()
