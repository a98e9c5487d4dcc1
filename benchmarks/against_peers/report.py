"""The records as one table in Markdown: `python report.py [--short]`."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness import RESULTS, WORK


def markdown(rows: Sequence[Mapping]) -> str:
    "A table of rows that have the same keys."
    if not rows:
        return "nothing measured yet\n"
    names = list(rows[0])

    def shown(value) -> str:
        if isinstance(value, float):
            return f"{value:.4g}"
        return "" if value is None else str(value)

    lines = [names, ["---"] * len(names)]
    lines += [[shown(row.get(name)) for name in names] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def judged(rows: Mapping[str, Mapping]) -> list[dict]:
    "The rows that count of `same_minutes.py`, by mark, the most accurate first."
    found = [
        {
            "run": row["run"],
            "core-minutes": row["core_minutes"],
            "updates": row.get("updates"),
            "guidance": row["guidance_scale"],
            "prompts": row["num_prompts"],
            "accuracy": row["all"]["value"],
            "MMD": row["mmd"]["value"],
            "precision": row["precision"]["value"],
            "coverage": row["coverage"]["value"],
        }
        for row in rows.values()
        if not row["pilot"]
    ]
    return sorted(found, key=lambda r: (r["core-minutes"], -r["accuracy"]))


def flat(rows: Mapping[str, Mapping]) -> list[dict]:
    "Rows with their plain numbers only."
    kept = [
        {"": key}
        | {k: v for k, v in row.items() if isinstance(v, (int, float, str, type(None)))}
        for key, row in rows.items()
    ]
    names = dict.fromkeys(name for row in kept for name in row)
    return [{name: row.get(name) for name in names} for row in kept]


def write_report(short: bool = False) -> Path:
    "Write report.md beside the work files, of all records that exist."
    folder = WORK / "short" if short else RESULTS
    parts = []
    for path in sorted(folder.glob("peers-*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = record["rows"]
        table = judged if "same-minutes" in path.name else flat
        parts.append(f"## {path.stem.removeprefix('peers-')}\n")
        parts.append(markdown(table(rows)))
        for name, why in record.get("left_out", {}).items():
            parts.append(f"Left out: {name}: {why}\n")
        for key in ("equal_quality", "summary", "beyond_torch"):
            if key in record:
                parts.append(f"{key}: `{json.dumps(record[key])}`\n")
    path = WORK / ("report-short.md" if short else "report.md")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


if __name__ == "__main__":
    print(write_report("--short" in sys.argv))
