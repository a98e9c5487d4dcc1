@pytest.mark.parametrize("name", ["unconditional, seed 0", "batch of 2, seed 2"])
def test_records_hold_what_the_chapter_reads(name):
    stem = name.replace(", ", "-").replace(" ", "-")
    record = load_json(RESULTS_DIR / "ladder" / f"{stem}.json")
    assert record["name"] == name
    n = record["num_images"]
    assert all(len(v) == n for v in record["final"]["prompt_by_prompt"].values())
    share = record["final"]["prompt_by_prompt"]["species"].count("1") / n
    assert share == pytest.approx(record["final"]["species"]["value"], abs=1e-6)
    steps = [h["step"] for h in record["history"]]
    assert steps == sorted(set(steps)) and steps[-1] == 1200
    sheet = load_tensors(RESULTS_DIR / "ladder" / f"{stem}.safetensors")[0]["images"]
    assert sheet.dtype == torch.uint8 and sheet.shape[1:] == (3, 16, 16)
