"""A look at images and captions before a training: every finding, by name."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
from PIL import Image

from t2i_tutorial import critters
from t2i_tutorial.caption_check import FINDINGS, check_data, count_captions
from t2i_tutorial.clip import CLIP, CLIPTextEncoder
from t2i_tutorial.core import UserError, load_json, to_pil
from t2i_tutorial.data import open_dataset
from t2i_tutorial.data_check import difference_hash, near_copies, thumbnail

DRAWN = critters.sample_critters(12, 64, seed=5)


@pytest.fixture(scope="module")
def encoder():
    return CLIPTextEncoder(CLIP.from_pretrained("critters-clip"))


@pytest.fixture
def folder(tmp_path):
    "Twelve creatures with their captions, without any fault."
    path = tmp_path / "images"
    path.mkdir()
    for i, image in enumerate(DRAWN.images):
        to_pil(image).save(path / f"{i:02}.png")
    write_lines(path, {f"{i:02}.png": c for i, c in enumerate(DRAWN.captions)})
    return path


def write_lines(folder, captions):
    lines = [json.dumps({"file_name": k, "text": v}) for k, v in captions.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def captions_of(folder):
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    return {r["file_name"]: r["text"] for r in map(json.loads, lines)}


def add(folder, name, image, caption="a blue cat", **options):
    image.save(folder / name, **options)
    write_lines(folder, captions_of(folder) | {name: caption})


def caption(folder, name, text):
    write_lines(folder, captions_of(folder) | {name: text})


def named(items):
    "The files that findings name."
    return [item.partition(":")[0] for item in items]


@pytest.fixture
def t2i(t2i):
    "Run `t2i caption-check` in an empty folder: exit code, output, errors."
    return partial(t2i, "caption-check")


def refused(result, *parts):
    "Exit code 2 and one line with these words in it."
    code, _, err = result
    lines = [s for s in err.replace("\r", "\n").splitlines() if s.strip()]
    assert code == 2 and len(lines) == 1, result
    assert all(part in lines[0] for part in parts), lines[0]


# ---- images


def test_nothing_is_found_in_a_sound_folder(folder, encoder):
    report = check_data(folder, encoder=encoder)
    assert not report.findings and "nothing was found" in report.text()
    n = report.numbers
    assert n["images"] == n["usable"] == n["captions"] == 12
    assert n["formats"] == {"PNG": 12} and n["modes"] == {"RGB": 12}
    assert n["unknown_words"] == 0 and n["max_tokens"] == 48


def cut(folder):
    content = (folder / "01.png").read_bytes()
    (folder / "01.png").write_bytes(content[: len(content) // 2])


def empty(folder):
    (folder / "01.png").write_bytes(b"")


def no_image(folder):
    (folder / "01.png").write_text("<html>not found</html>")


def missing(folder):
    (folder / "01.png").unlink()


def narrow(folder):
    Image.new("RGB", (400, 20)).save(folder / "01.png")


def outside(folder):
    Image.new("RGB", (64, 64)).save(folder.parent / "secret.png")
    (folder / "01.png").unlink()
    (folder / "01.png").symlink_to(folder.parent / "secret.png")


@pytest.mark.parametrize(
    "harm, part",
    [
        (cut, "it is damaged"),
        (empty, "it is empty (0 bytes)"),
        (no_image, "not an image that Pillow can read"),
        (missing, "is missing"),
        (narrow, "narrower than 16 to 1"),
        (outside, "leaves the folder"),
    ],
)
def test_images_that_cannot_be_used_are_named_and_not_fatal_f9(folder, harm, part):
    """F9: a training stopped at the first damaged file, in the middle.

    Whatever a training refuses is found, and the other images are looked at.
    """
    harm(folder)
    caption(folder, "07.png", "")  # a second fault, which is found as well
    report = check_data(folder)
    (item,) = report.findings["unusable images"]
    assert item.startswith("01.png: ") and part in item and ";" not in item
    assert report.numbers["usable"] == 11 and report.numbers["images"] == 12
    assert named(report.findings["no caption"]) == ["07.png"]
    with pytest.raises(UserError):
        open_dataset(folder, 32)
    write_lines(folder, {k: "a cat" for k in captions_of(folder)})
    with pytest.raises(UserError):
        open_dataset(folder, 32)


def test_a_sound_folder_opens_for_a_training(folder):
    assert not check_data(folder).findings and len(open_dataset(folder, 32)) == 12


def brighter(image, amount):
    pixels = np.asarray(image).astype(int) + amount
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def half(image):
    return image.resize((32, 32), Image.Resampling.BICUBIC)


def test_copies_have_equal_pixels(folder):
    image = Image.open(folder / "03.png")
    shutil.copy(folder / "03.png", folder / "90.png")
    caption(folder, "90.png", "a blue cat")
    add(folder, "91.png", image, compress_level=0)
    add(folder, "92.bmp", image)
    report = check_data(folder)
    same = [f"{n}: the same as 03.png" for n in ("90.png", "91.png", "92.bmp")]
    assert report.findings == {"copies": same}


@pytest.mark.parametrize(
    "name, change, options",
    [
        ("90.jpg", lambda x: x, {"quality": 85}),
        ("90.webp", lambda x: x, {"quality": 80}),
        ("90.png", lambda x: brighter(x, 2), {}),
        ("90.png", half, {}),
        ("90.png", lambda x: x.resize((200, 200), Image.Resampling.BICUBIC), {}),
    ],
    ids=["jpeg", "webp", "brighter", "smaller", "larger"],
)
def test_near_copies_are_found(folder, name, change, options):
    with Image.open(folder / "03.png") as image:
        add(folder, name, change(image), **options)
    findings = check_data(folder).findings
    assert findings["near copies"] == [f"{name}: like 03.png"]
    assert set(findings) <= {"near copies", "small images"}


def test_another_colour_and_a_mirror_image_are_no_near_copies(folder):
    with Image.open(folder / "03.png") as image:
        red, green, blue = image.split()
        add(folder, "90.png", Image.merge("RGB", (green, blue, red)))
        add(folder, "91.png", image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert not check_data(folder).findings


def test_the_hash_is_that_of_its_definition():
    small = np.stack([thumbnail(to_pil(image)) for image in DRAWN.images])
    for k, value in enumerate(difference_hash(small)):
        bits = np.unpackbits(np.array([value]).view(np.uint8)).reshape(8, 8)
        for i in range(8):
            g = small[k, i].astype(int) @ [299, 587, 114] // 1000
            assert bits[i].tolist() == [g[j + 1] > g[j] + 2 for j in range(8)]


def test_near_copies_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 200, (20, 8, 9, 3))
    tests = base[rng.integers(0, 20, 80)] + rng.integers(0, 30, (80, 1, 1, 1))
    tests = (tests + rng.integers(0, 4, tests.shape)).astype(np.uint8)
    hashes, found = difference_hash(tests), {}
    for i in range(80):
        for k in range(i + 1, 80):
            bits = int(hashes[i] ^ hashes[k]).bit_count()
            rms = ((tests[i] * 1.0 - tests[k]) ** 2).mean() ** 0.5
            if bits <= 6 and rms <= 8 and i not in found and k not in found:
                found[k] = i
    assert near_copies(tests) == found and 10 < len(found) < 70


def test_sizes_and_modes(folder):
    for n in ("00.png", "01.png"):
        (folder / n).unlink()
    with Image.open(folder / "02.png") as image:
        image.convert("L").save(folder / "00.png")
        image.convert("P").save(folder / "01.png")
    rng = np.random.default_rng(1)
    noise = Image.fromarray(rng.integers(0, 256, (300, 700, 4), dtype=np.uint8))
    add(folder, "large.png", noise)
    add(folder, "tiny.png", noise.convert("RGB").crop((0, 0, 20, 18)))
    add(folder, "plain.png", Image.new("RGB", (64, 64), "red"))
    add(folder, "other.png", Image.new("RGB", (64, 64), (254, 1, 0)))
    report = check_data(folder)
    n = report.numbers
    assert n["modes"] == {"L": 1, "P": 1, "RGB": 13, "RGBA": 1}
    assert n["smallest"] == [20, 18, "tiny.png"] and n["not_square"] == 2
    assert n["largest"] == [700, 300, "large.png"]
    assert report.findings["small images"] == ["tiny.png: 20 x 18 pixels"]
    assert report.findings["narrow images"] == ["large.png: 700 x 300 pixels"]
    assert report.findings["one colour"] == ["plain.png", "other.png"]
    assert "other.png" not in str(report.findings.get("near copies"))
    assert "white bars" in report.text()
    assert "edges are cut off" in check_data(folder, crop=True).text()


def test_an_image_on_its_side_has_its_upright_size(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    add(folder, "phone.jpg", Image.new("RGB", (80, 60), "red"), exif=exif)
    assert check_data(folder).numbers["largest"] == [60, 80, "phone.jpg"]


# ---- captions


@pytest.mark.parametrize("text", ["", "  ", "\u200b", None])
def test_an_empty_caption_is_named(folder, text):
    caption(folder, "04.png", text)
    report = check_data(folder)
    assert named(report.findings["no caption"]) == ["04.png"]
    assert report.numbers["captions"] == 11 and report.numbers["usable"] == 12


def test_captions_that_a_training_refuses(folder):
    caption(folder, "04.png", "cat " * 300)
    caption(folder, "05.png", 7)
    findings = check_data(folder).findings
    assert named(findings["refused captions"]) == ["04.png", "05.png"]
    findings = check_data(folder, max_caption=1200).findings
    assert named(findings["refused captions"]) == ["05.png"]


@pytest.mark.parametrize("others", [0, 1, 5])
def test_one_caption_for_all_f4(folder, others):
    "F4: a set with one caption was found after 35 minutes of training."
    write_lines(folder, dict.fromkeys(captions_of(folder), "a red cat"))
    for i in range(others):
        caption(folder, f"{i:02}.png", DRAWN.captions[i])
    (item,) = check_data(folder).findings["one caption"]
    assert item == f"{12 - others} of 12: 'a red cat'"


def test_cut_captions_are_counted_the_longest_first_f8(folder, encoder):
    "F8: which captions are cut was said one by one, in the training."
    caption(folder, "04.png", "a red cat " * 20)
    caption(folder, "05.png", "a red cat " * 30)
    report = check_data(folder, encoder=encoder)
    items = report.findings["cut captions"]
    assert named(items) == ["05.png", "04.png"] and "91 tokens, 48 are read" in items[0]
    assert report.numbers["tokens_per_caption"][2] == 91
    assert "cut captions" not in check_data(folder).findings  # without an encoder


def test_unknown_words_have_counts_and_an_example(folder, encoder):
    caption(folder, "04.png", "a purpel cat, purpel")
    caption(folder, "05.png", "a red gizmo and a purpel cat")
    report = check_data(folder, encoder=encoder)
    purple, gizmo = report.findings["unknown words"]
    assert purple.startswith("3 x 'purpel', for instance 04.png (similar: purple")
    assert gizmo.startswith("1 x 'gizmo', for instance 05.png")
    assert report.numbers["unknown_words"] == 2 and report.numbers["unknown_times"] == 4


def test_numbers_of_captions():
    n = count_captions(["a red cat", "a red cat", "a blue and green dragon"])
    assert n["most_frequent"] == {"caption": "a red cat", "times": 2}
    assert n["words_per_caption"] == [3, 3, 5] and n["distinct"] == 2
    assert n["words"] == 11 and n["distinct_words"] == 7 and n["words_once"] == 4
    assert n["most_frequent_words"]["a"] == 3
    assert n["longest"] == "a blue and green dragon"


# ---- where images and captions are


def test_text_files_beside_images(folder):
    for name, text in captions_of(folder).items():
        (folder / name).with_suffix(".txt").write_text(text)
    (folder / "metadata.jsonl").unlink()
    assert not check_data(folder).findings
    (folder / "02.txt").unlink()
    (folder / "03.txt").write_text("")
    (folder / "04.txt").write_bytes(b"caf\xe9")
    (folder / "readme.txt").write_text("about these images")
    findings = check_data(folder).findings
    assert named(findings["no caption"]) == ["02.png", "03.png"]
    assert named(findings["refused captions"]) == ["04.png"]
    assert findings["unused captions"] == ["readme.txt"]
    assert list(findings) == ["no caption", "refused captions", "unused captions"]


def test_a_csv_with_two_columns_in_a_split(folder):
    part = folder.parent / "set" / "val"
    part.mkdir(parents=True)
    for i in range(3):
        shutil.copy(folder / f"{i:02}.png", part)
    lines = ["file_name,short,long", "00.png,a cat,a red cat", "01.png,,", "02.png,x,"]
    (part / "metadata.csv").write_text("\n".join(lines))
    report = check_data(part.parent, "val", ("short", "long"))
    assert report.numbers["captions"] == 3
    assert named(report.findings["no caption"]) == ["01.png"]


def test_several_lines_of_one_image_are_one_image(folder):
    with open(folder / "metadata.jsonl", "a") as f:
        f.write('\n{"file_name": "00.png", "text": "another caption"}')
        f.write('\n{"text": "no file"}')
    report = check_data(folder)
    assert report.numbers["usable"] == 12 and report.numbers["captions"] == 13
    assert report.findings == {"unusable images": ["line 14: it has no file_name"]}


def test_unlisted_images(folder):
    lines = captions_of(folder)
    del lines["11.png"]
    write_lines(folder, lines)
    assert check_data(folder).findings == {"unlisted images": ["11.png"]}


def test_a_folder_of_parquet_files(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    names = sorted(captions_of(folder))
    rows = [{"bytes": (folder / n).read_bytes(), "path": None} for n in names]
    rows[2]["bytes"] = rows[2]["bytes"][:200]
    rows[3]["bytes"] = rows[1]["bytes"]
    texts = [captions_of(folder)[n] for n in names]
    texts[4] = ""
    features = datasets.Features(
        image=datasets.Image(decode=False), text=datasets.Value("string")
    )
    table = datasets.Dataset.from_dict({"image": rows, "text": texts}, features)
    (tmp_path / "parquet").mkdir()
    table.to_parquet(tmp_path / "parquet" / "train-00000.parquet")
    findings = check_data(tmp_path / "parquet").findings
    assert named(findings["unusable images"]) == ["row 2"]
    assert named(findings["no caption"]) == ["row 4"]
    assert findings["copies"] == ["row 3: the same as row 1"]


# ---- the report and the command


def broken(folder):
    "A folder with most faults."
    cut(folder)
    caption(folder, "02.png", "")
    caption(folder, "05.png", "a whimsical gizmo " * 20)
    for i in range(7):
        shutil.copy(folder / "03.png", folder / f"9{i}.png")
        caption(folder, f"9{i}.png", "a red cat")
    with Image.open(folder / "04.png") as image:
        add(folder, "99.jpg", image, quality=90)
    return folder


def test_the_command_prints_findings_and_what_to_do(t2i, folder):
    code, out, err = t2i(broken(folder))
    assert code == 0 and not err.count("t2i:")
    for kind in ("unusable images", "no caption", "near copies", "cut captions"):
        assert f"\n{kind}: 1" in out and f"-> {FINDINGS[kind][1]}" in out
    assert "\ncopies: 7\n" in out and "\n    and 2 more\n" in out
    assert "01.png: it is damaged" in out and "2 x" not in out
    assert "20 x 'gizmo', for instance 05.png" in out
    assert out.count("a training does not begin") == 2
    labels = [s for s in out.split("\n\n")[0].splitlines()]
    assert len(labels) > 10 and all(s[14] == " " != s[15] for s in labels)  # aligned


def test_json_holds_every_finding_and_is_the_same_twice(t2i, folder):
    broken(folder)
    for name in ("a.json", "b.json"):
        code, out, _ = t2i(folder, "--json", name)
        assert code == 0 and out.splitlines()[-1] == name
    report = load_json("a.json")
    assert report == load_json("b.json")
    with open("a.json", "rb") as a, open("b.json", "rb") as b:
        assert a.read() == b.read()
    found = {f["kind"]: f for f in report["findings"]}
    assert found["copies"]["count"] == len(found["copies"]["items"]) == 7
    assert found["unusable images"]["stops"] and not found["copies"]["stops"]
    assert report["numbers"]["text_encoder"] == "critters-clip+token-embeddings"
    assert report["source"] == str(folder)


def test_options_of_the_data_are_those_of_a_training(t2i, folder):
    rows = [{"file_name": "00.png", "short": "a cat", "long": "a red cat " * 20}]
    (folder / "metadata.jsonl").write_text(json.dumps(rows[0]))
    options = ["--text-column", "short,long", "--max-caption", 100, "--crop"]
    code, out, _ = t2i(folder, *options, "--split", "train", "--json", "a.json")
    report = load_json("a.json")
    assert code == 0 and "refused captions: 1" in out and report["numbers"]["crop"]
    assert report["numbers"]["captions"] == 1


@pytest.mark.parametrize("n, columns, rows", [(3, 3, 1), (12, 8, 2)])
def test_the_contact_sheet_has_all_images_of_a_small_folder(
    t2i, folder, n, columns, rows
):
    write_lines(folder, {f"{i:02}.png": "a red cat" for i in range(n)})
    code, out, _ = t2i(folder, "--sheet", "sheet.png")
    assert code == 0 and out.splitlines()[-1] == "sheet.png"
    width, height = Image.open("sheet.png").size
    assert width == columns * (128 + 8)
    line = round(13 * max(1, width / 690))  # letters grow with what a page shrinks
    assert height == rows * (128 + line + 8)


def test_the_contact_sheet_has_at_most_48_images(folder):
    for i in range(12, 61):
        shutil.copy(folder / "00.png", folder / f"{i:02}.png")
    names = sorted(p.name for p in folder.glob("*.png"))
    write_lines(folder, dict.fromkeys(names, "a long caption " * 20))
    figure = check_data(folder).contact_sheet()
    assert len(figure.texts) == 48 and figure.get_size_inches()[0] == 8 * 1.36
    assert max(len(t.get_text()) for t in figure.texts) <= 95


def test_the_sheet_is_fitted_as_a_training_will(folder):
    write_lines(folder, {})
    rng = np.random.default_rng(2)
    wide = Image.fromarray(rng.integers(0, 200, (60, 180, 3), dtype=np.uint8))
    add(folder, "wide.png", wide)
    white = {}
    for crop in (False, True):
        figure = check_data(folder, crop=crop).contact_sheet()
        sheet = figure.axes[0].images[0].get_array()[:128, :128, :3]
        white[crop] = (sheet == 255).all(-1).mean()
    assert white[False] > 0.6 and white[True] < 0.01


@pytest.mark.parametrize(
    "arguments, parts",
    [
        ([], ["no DATA"]),
        (["critters"], ["critters are drawn"]),
        (["nowhere"], ["nowhere"]),
        (["./nowhere"], ["no folder", "check the path"]),
        ([""], ["source of images"]),
        (["\udcff"], ["no UTF-8"]),
        (["FOLDER", "--split", "tain"], ["did you mean 'train'"]),
        (["FOLDER", "--text-column", "txt"], ["did you mean 'text'"]),
        (["FOLDER", "--max-caption", "0"], ["max_caption"]),
        (["FOLDER", "--max-caption", "x"], ["--max-caption must be a whole number"]),
        (["FOLDER", "--text-encoder", ""], ["--text-encoder is empty"]),
        (["FOLDER", "--text-encoder", "./none"], ["no folder './none'"]),
        (["FOLDER", "--sheet", "a.jpg"], ["must end in .png"]),
        (["FOLDER", "--sheet", "no/a.png"], ["does not exist"]),
        (["FOLDER", "--json", "a.txt"], ["must end in .json"]),
        (["FOLDER", "--json", ""], ["--json is empty"]),
        (["FOLDER", "--sheets", "a.png"], ["did you mean '--sheet'"]),
        (["FOLDER", "more"], ["unexpected 'more'"]),
    ],
)
def test_a_mistake_is_one_line_and_no_file(t2i, folder, tmp_path, arguments, parts):
    arguments = [str(folder) if a == "FOLDER" else a for a in arguments]
    refused(t2i(*arguments), *parts)
    assert not list((tmp_path / "here").iterdir())


def test_metadata_that_cannot_be_read_names_its_line(t2i, folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "00.png", "text": "a"}\n{')
    refused(t2i(folder), "metadata.jsonl', line 2: it is not valid JSON")
    (folder / "metadata.jsonl").write_text("")
    refused(t2i(folder), "lists no image")


def test_a_file_that_exists_is_kept_unless_asked_for(t2i, folder):
    assert t2i(folder, "--json", "a.json")[0] == 0
    caption(folder, "00.png", "")
    refused(t2i(folder, "--json", "a.json"), "'a.json' exists")
    assert load_json("a.json")["findings"] == []
    assert t2i(folder, "--json", "a.json", "--overwrite")[0] == 0
    assert load_json("a.json")["findings"]


def test_nothing_is_half_written(t2i, folder, tmp_path, monkeypatch):
    def full(self, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    code, _, err = t2i(folder, "--sheet", "sheet.png")
    assert code == 2 and "No space left" in err and "Traceback" not in err
    assert not list((tmp_path / "here").iterdir())


def test_a_folder_without_a_sound_image_has_no_contact_sheet(t2i, folder, tmp_path):
    for path in folder.glob("*.png"):
        path.write_bytes(b"")
    assert t2i(folder)[0] == 0
    code, out, err = t2i(folder, "--sheet", "sheet.png")
    assert code == 2 and "unusable images: 12" in out and "no contact sheet" in err
    assert not list((tmp_path / "here").iterdir())


def test_odd_names_stand_on_one_line(folder):
    name = "a\nb\u202e.png"
    shutil.copy(folder / "00.png", folder / name)
    caption(folder, name, "a red cat")
    (item,) = check_data(folder).findings["copies"]
    assert item == "'a\\nb\\u202e.png': the same as 00.png"


def test_decoding_has_a_progress_bar(folder, monkeypatch):
    seen = {}

    def bar(items, description="", total=None):
        seen[description] = total
        return items

    monkeypatch.setattr("t2i_tutorial.data.progress_bar", bar)
    check_data(folder)
    assert seen == {"checking images": 12}


def test_real_images(pictures_folder, encoder):
    "Doubled tiles of a game: nothing is damaged, and hardly a word is known."
    report = check_data(pictures_folder, encoder=encoder)
    n, lines = report.numbers, (pictures_folder / "metadata.jsonl").read_text()
    assert n["images"] == n["usable"] == len(lines.splitlines())
    assert not any(FINDINGS[kind][0] for kind in report.findings)
    assert 0.2 < n["unknown_times"] / n["words"] < 0.9
    near = report.findings.get("near copies", [])
    assert len(near) < 0.05 * n["images"]
    assert report.as_dict() == check_data(pictures_folder, encoder=encoder).as_dict()
