"""Chapter 6: what a file and a caption become, what is refused and how, and that
batches repeat to the bit.
"""

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from t2i_tutorial import critters, data
from t2i_tutorial.core import UserError, from_uint8, to_pil
from t2i_tutorial.data import (
    Batch,
    ImageTextDataset,
    StreamingImageTextDataset,
    center_crop,
    clean_caption,
    describe_data_change,
    flip_caption,
    letterbox,
    load_image,
    open_dataset,
    read_metadata,
    sample_augmentation,
    shuffle_buffer,
)

DRAGON = "a red dragon"


def make_image(w=24, h=24):
    "An image with no symmetry: four quarters of different colours."
    p = Image.new("RGB", (w, h), (200, 30, 40))
    p.paste((20, 160, 60), (w // 2, 0, w, h // 2))
    p.paste((30, 60, 210), (0, h // 2, w // 2, h))
    p.paste((90, 90, 90), (w // 2, h // 2, w, h))
    return p


def reopened(p, format, **options):
    b = io.BytesIO()
    p.save(b, format, **options)
    return Image.open(io.BytesIO(b.getvalue()))


def pixels(p):
    return torch.from_numpy(np.array(p)).permute(2, 0, 1)


def folder(
    tmp_path,
    *records,
    name="pictures",
    files=("a.png",),
    text=None,
    metadata="metadata.jsonl",
):
    "A folder with these images and these metadata records (or this metadata text)."
    path = tmp_path / name
    for f in files:
        (path / f).parent.mkdir(parents=True, exist_ok=True)
        make_image().save(path / f)
    path.mkdir(exist_ok=True)
    text = "\n".join(map(json.dumps, records)) + "\n" if text is None else text
    if metadata:
        (path / metadata).write_bytes(
            text if isinstance(text, bytes) else text.encode("utf-8")
        )
    return path


def record(text=DRAGON, file="a.png"):
    return {"file_name": file, "text": text}


def refusal(action, *args, **kwargs):
    "The message of the UserError that must come; it must be one line."
    with pytest.raises(UserError) as e:
        action(*args, **kwargs)
    assert "\n" not in str(e.value) and len(str(e.value)) < 600
    return str(e.value)


def same(a, b):
    a, b = list(a), list(b)
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images)
        and x.captions == y.captions
        and torch.equal(x.indices, y.indices)
        for x, y in zip(a, b)
    )


# ---- one image


@pytest.mark.parametrize("low, high", [(102, 153), (110, 130), (255, 255), (0, 0)])
def test_colours_are_not_stretched_mi7(low, high):
    """MI-7: a low-contrast image keeps its levels, an image of one colour does not
    become NaN.
    """
    p = Image.new("RGB", (32, 32), (low,) * 3)
    p.paste((high,) * 3, (16, 0, 32, 32))
    out = letterbox(p, 32)
    assert (
        out.unique().tolist() == sorted({low, high})
        and from_uint8(out).isfinite().all()
    )


@pytest.mark.parametrize("w, h", [(40, 10), (10, 40), (33, 32), (640, 480)])
def test_not_squashed_but_padded_mi7(w, h):
    "MI-7: an image that is not square keeps its proportions, on white."
    inked = (letterbox(Image.new("RGB", (w, h), "black"), 64) < 128).all(0)
    rows, columns = inked.any(1).sum().item(), inked.any(0).sum().item()
    assert (
        max(rows, columns) == 64 and abs(columns / rows - w / h) < 0.06 * w / h + 0.02
    )
    outside = letterbox(Image.new("RGB", (w, h), "black"), 64)[:, ~inked]
    assert outside.numel() == 0 or outside.min() >= 128
    assert (
        abs(inked.any(1).float().argmax() - (64 - rows) / 2) <= 1
        and abs(inked.any(0).float().argmax() - (64 - columns) / 2) <= 1
    )  # centred


def test_same_size_keeps_every_bit():
    assert torch.equal(letterbox(make_image(64, 64), 64), pixels(make_image(64, 64)))


def test_whole_enlargement_repeats_pixels():
    assert torch.equal(
        letterbox(make_image(32, 32), 96),
        pixels(make_image(32, 32)).repeat_interleave(3, 1).repeat_interleave(3, 2),
    )


def test_shrinking_is_antialiased_as_in_torch():
    """A fine checkerboard becomes even grey, and bytes agree with PyTorch's antialiased
    bicubic to one level.
    """
    board = (
        ((torch.arange(96)[:, None] + torch.arange(96)) % 2 * 255)
        .to(torch.uint8)
        .expand(3, 96, 96)
    )
    assert (
        letterbox(to_pil(from_uint8(board)), 24)[:, 4:-4, 4:-4].int() - 128
    ).abs().max() <= 2
    noise = torch.randint(
        0,
        256,
        (3, 96, 96),
        generator=torch.Generator().manual_seed(0),
        dtype=torch.uint8,
    )
    ours = letterbox(Image.fromarray(noise.permute(1, 2, 0).numpy()), 40)
    theirs = torch.nn.functional.interpolate(
        noise[None], (40, 40), mode="bicubic", antialias=True
    )[0]
    assert (ours.int() - theirs.int()).abs().max() <= 1


def test_the_filter_rings_less_than_lanczos_and_does_not_alias():
    "Of a hard edge bicubic overshoots fewer levels; a fine chirp fades to grey."
    edge = np.full((64, 64), 64, np.uint8)
    edge[:, 30:] = 192

    def overshoot(method):
        out = np.asarray(Image.fromarray(edge).resize((24, 24), method)).astype(int)
        return max(out.max() - 192, 64 - out.min())

    filters = Image.Resampling
    assert overshoot(filters.BICUBIC) < overshoot(filters.LANCZOS)
    x = torch.linspace(0, 1, 384)
    chirp = to_pil(torch.sin(2 * torch.pi * 60 * x**2).expand(3, 384, 384))
    nearest = pixels(chirp.resize((96, 96), filters.NEAREST))
    assert (
        letterbox(chirp, 96)[..., -12:].float().std()
        < 0.5 * nearest[..., -12:].float().std()
    )


def test_transparent_pixels_become_white_whatever_colour_hides_below():
    shrunk = []
    for hidden in ((0, 0, 0), (255, 0, 255)):
        p = Image.new("RGBA", (32, 32), (*hidden, 0))
        p.paste((200, 30, 40, 255), (8, 8, 24, 24))
        out = letterbox(p, 32)
        assert out[:, 0, 0].tolist() == [255] * 3 and out[:, 16, 16].tolist() == [
            200,
            30,
            40,
        ]
        shrunk.append(letterbox(p, 16))
    assert torch.equal(*shrunk)  # no fringe of the hidden colour after shrinking
    half = letterbox(Image.new("RGBA", (16, 16), (0, 0, 0, 128)), 16)
    assert half.unique().tolist() == [127]


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBa"])
def test_other_modes_with_alpha(mode):
    p = Image.new("L", (16, 16), 100)
    solid = Image.new("L", (16, 16), 0)
    solid.paste(255, (0, 0, 8, 16))
    p = (
        p.convert("P").convert("PA")
        if mode == "PA"
        else p.convert("LA" if mode in ("LA", "La") else "RGBA")
    )
    p.putalpha(solid)
    if mode in ("La", "RGBa"):
        p = p.convert(mode)
    assert p.mode == mode
    out = letterbox(p, 16)
    assert (
        out[:, 8, 12].tolist() == [255] * 3
        and (out[:, 8, 2].int() - 100).abs().max() <= 8
    )


def test_palette_with_a_transparent_entry():
    p = make_image(32, 32).quantize(8)
    out = letterbox(reopened(p, "png", transparency=p.getpixel((0, 0))), 32)
    assert out[:, 0, 0].tolist() == [255] * 3 and out[:, 0, 31].tolist() == list(
        p.convert("RGB").getpixel((31, 0))
    )


def test_sixteen_bit_grey_keeps_its_levels():
    levels = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    out = letterbox(reopened(Image.fromarray(levels), "png"), 32)
    assert np.abs(out[0].numpy() - levels / 257).max() <= 0.51 and torch.equal(
        out[0], out[2]
    )
    assert np.array_equal(
        letterbox(Image.fromarray(levels.astype(np.int32)), 32)[0].numpy(),
        out[0].numpy(),
    )  # older Pillow: mode I


def test_one_bit_and_grey():
    assert letterbox(make_image(32, 32).convert("1"), 32).unique().tolist() == [0, 255]
    assert torch.equal(
        letterbox(make_image(32, 32).convert("L"), 32)[0],
        torch.from_numpy(np.array(make_image(32, 32).convert("L"))),
    )


def test_cmyk():
    assert (
        letterbox(reopened(make_image(32, 32).convert("CMYK"), "tiff"), 32).int()
        - pixels(make_image(32, 32)).int()
    ).abs().max() <= 2


@pytest.mark.parametrize("format", ["gif", "webp", "png"])
def test_animated_gives_the_first_frame(format):
    p = reopened(
        make_image(32, 32),
        format,
        save_all=True,
        append_images=[Image.new("RGB", (32, 32), "black")],
        **({"lossless": True} if format == "webp" else {}),
    )
    p.seek(1)  # whatever was looked at before
    assert (letterbox(p, 32).int() - pixels(make_image(32, 32)).int()).abs().max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(orientation):
    "All eight orientations; a wide image, so that the sides swap too."
    T, exif = Image.Transpose, Image.Exif()
    exif[0x0112] = orientation
    stored = {
        1: None,
        2: T.FLIP_LEFT_RIGHT,
        3: T.ROTATE_180,
        4: T.FLIP_TOP_BOTTOM,
        5: T.TRANSPOSE,
        6: T.ROTATE_90,
        7: T.TRANSVERSE,
        8: T.ROTATE_270,
    }[orientation]
    p = make_image(32, 16)
    p = reopened(p if stored is None else p.transpose(stored), "png", exif=exif)
    assert torch.equal(letterbox(p, 32), letterbox(make_image(32, 16), 32))


def test_one_pixel_is_enlarged(tmp_path):
    Image.new("RGB", (1, 1), (9, 8, 7)).save(tmp_path / "dot.png")
    assert torch.equal(
        load_image(tmp_path / "dot.png", 16),
        torch.tensor([9, 8, 7], dtype=torch.uint8)[:, None, None].expand(3, 16, 16),
    )


def test_a_line_is_refused(tmp_path):
    Image.new("RGB", (10_000, 3)).save(tmp_path / "line.png")
    m = refusal(load_image, tmp_path / "line.png", 64)
    assert "line.png" in m and "10000 x 3" in m and "crop it" in m
    assert letterbox(Image.new("RGB", (160, 10)), 16).shape == (
        3,
        16,
        16,
    )  # 16 to 1 still passes


def _png_of_size(w, h):
    "A PNG that claims a size and holds nothing."

    def chunk(kind, body):
        return (
            len(body).to_bytes(4, "big")
            + kind
            + body
            + zlib.crc32(kind + body).to_bytes(4, "big")
        )

    head = w.to_bytes(4, "big") + h.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [10_000, 60_000])
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_is_refused_by_its_header(side, tmp_path):
    (tmp_path / "bomb.png").write_bytes(_png_of_size(side, side))
    m = refusal(load_image, tmp_path / "bomb.png", 64)
    assert "bomb.png" in m and "pixels" in m and "make it smaller" in m


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("empty.png", lambda whole: b"", "empty (0 bytes)"),
        ("half.png", lambda whole: whole[: len(whole) // 2], "damaged"),
        (
            "flipped.png",
            lambda whole: whole[:60] + bytes([whole[60] ^ 255]) + whole[61:],
            "damaged",
        ),
        (
            "letter.png",
            lambda whole: b"Dear reader, I am not a picture.",
            "not an image",
        ),
    ],
)
def test_broken_files_are_named(name, content, says, tmp_path):
    noise = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    )
    noise.save(tmp_path / "whole.png")
    (tmp_path / name).write_bytes(content((tmp_path / "whole.png").read_bytes()))
    m = refusal(load_image, tmp_path / name, 64)
    assert name in m and says in m and "take it out" in m
    (tmp_path / "metadata.jsonl").write_text(json.dumps(record(file=name)))
    with pytest.warns(UserWarning) if says == "damaged" else _nothing():
        m = refusal(ImageTextDataset.from_folder, tmp_path)  # whole.png is unlisted
    assert name in m and says in m


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def test_truncated_jpeg_is_not_half_grey(tmp_path):
    "A JPEG cut in half opens, and a lenient loader fills the rest with grey."
    noise = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    )
    noise.save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:3000])
    assert (
        "a.jpg" in (m := refusal(load_image, tmp_path / "a.jpg", 64)) and "damaged" in m
    )


def test_a_missing_file_is_named(tmp_path):
    assert (
        "gone.png" in (m := refusal(load_image, tmp_path / "gone.png", 64))
        and "check the path" in m
    )


def test_floating_point_pixels_are_refused():
    assert "floating-point" in refusal(letterbox, Image.new("F", (8, 8)), 32)


@pytest.mark.parametrize("size", [0, 15, 1000, "64", True, 32.5])
def test_bad_sizes(size, untyped, tmp_path):
    for action in (
        lambda: letterbox(make_image(), size),
        lambda: ImageTextDataset.from_folder(folder(tmp_path, record()), size=size),
        lambda: ImageTextDataset.from_critters(2, size=size),
        lambda: ImageTextDataset.from_hub("no/where", size=size),
    ):
        m = refusal(action)
        assert "size" in m and repr(size) in m and "16 to 512" in m


# ---- captions


def test_captions_are_normalised_and_collapsed():
    assert clean_caption("  a cafe\u0301\t\r\n dragon\x00 ") == "a caf\u00e9 dragon"


@pytest.mark.parametrize(
    "text",
    [
        "🐉 a dragon 👩\u200d🚀",
        "تنين أحمر",
        "דרקון אדום",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "赤い竜",
        "x" * 1000,
    ],
)
def test_emoji_and_other_scripts_stay(text, tmp_path):
    assert clean_caption(text) == text
    assert (
        ImageTextDataset.from_folder(folder(tmp_path, record(text)), size=16)[0][1]
        == text
    )


@pytest.mark.parametrize(
    "text, says",
    [
        (None, "missing"),
        ("", "empty"),
        (" \t\u3000", "empty"),
        (3, "not text but int"),
        (["x", 3], "not text but int"),
        ([], "missing"),
        ({"en": "x"}, "not text but dict"),
        (True, "not text but bool"),
        ("x" * 10_000, "10,000 characters, more than 1,000"),
        ("\ud83d", "half a Unicode"),
    ],
)
def test_bad_captions_name_file_and_line(text, says, tmp_path):
    good = [record(["x"] if isinstance(text, list) else "x")]
    path = folder(tmp_path, *good, record(text))
    m = refusal(ImageTextDataset.from_folder, path, size=16)
    assert "metadata.jsonl', line 2:" in m and says in m and ";" in m


def test_max_caption_can_be_raised(tmp_path):
    assert (
        len(
            ImageTextDataset.from_folder(
                folder(tmp_path, record("x" * 10_000)), size=16, max_caption=10_000
            )[0][1]
        )
        == 10_000
    )


# ---- left and right


@pytest.mark.parametrize(
    "before, after",
    [
        ("a red cat facing left", "a red cat facing right"),
        ("Looking Right, a DOG facing LEFT!", "Looking Left, a DOG facing RIGHT!"),
        ("a left-handed crab", "a right-handed crab"),
        ("turning left", "turning right"),
        (
            "on the left a cat, on the right a dog",
            "on the right a cat, on the left a dog",
        ),
        ("a ball to the left of the owl", "a ball to the right of the owl"),
        ("its left wing", "its right wing"),
        ("a bright owl", "a bright owl"),
        ("leftover cake and copyright", "leftover cake and copyright"),
        ("moving leftwards", "moving rightwards"),
        (DRAGON, DRAGON),
        ("what is left of a castle", None),
        ("all right", None),
        ("the right colour", None),
        ("on the right track", None),
        ("an owl left the nest", None),
        ("facing left, the right choice", None),
        ("a sign that says STOP", None),
        ("turning clockwise", None),
        ("stage left", None),
    ],
)
def test_left_and_right_in_captions(before, after):
    assert flip_caption(before) == after
    if after is not None:
        assert flip_caption(after) == before


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            "a red cat facing looking left right Left RIGHT , . on the its "
            "wing hand side sign of -handed".split()
        ),
        max_size=12,
    )
)
def test_mirroring_twice_changes_nothing(words):
    text = " ".join(words)
    once = flip_caption(text)
    assert once is None or flip_caption(once) == text


def test_flips_keep_image_caption_and_attribute_together():
    d = ImageTextDataset.from_critters(200, size=16, seed=2)
    turned = kept = 0
    for b in d.batches(64, seed=1, flip=True):
        for image, text, i, facing in zip(
            b.images, b.captions, b.indices.tolist(), b.attributes["facing"].tolist()
        ):
            original, caption = d[i]
            flip = sample_augmentation(1, 0, i).flip
            turned, kept = turned + flip, kept + (not flip)
            assert torch.equal(
                image, original.flip(-1) if flip else original
            ) and text == (flip_caption(caption) if flip else caption)
            assert facing == (
                1 - d.attributes["facing"][i] if flip else d.attributes["facing"][i]
            )
            for direction in ("left", "right"):
                if direction in text:
                    assert critters.ATTRIBUTES["facing"][facing] == direction
    assert turned > 60 and kept > 60


def test_unsure_captions_are_never_flipped(tmp_path):
    d = ImageTextDataset.from_folder(
        folder(tmp_path, record("what is left of a castle")), size=16
    )
    assert all(
        torch.equal(b.images[0], d[0][0])
        for e in range(20)
        for b in d.batches(1, epoch=e, flip=True)
    )


# ---- folders


def test_a_folder_holds_what_pillow_reads_from_its_files(tmp_path):
    files = [
        f"{'test' if i % 2 else 'train'}_{i}.png" for i in range(6)
    ]  # names that `datasets` takes for splits
    path = folder(
        tmp_path,
        *[record(f"{DRAGON} {i}", f) for i, f in enumerate(files)],
        files=files,
    )
    for i, f in enumerate(files):
        make_image(20 + 4 * i, 30).save(path / f)
    d = ImageTextDataset.from_folder(path, size=32)
    assert [t for _, t in d] == [f"{DRAGON} {i}" for i in range(6)]
    assert all(
        torch.equal(d.cache[i], letterbox(Image.open(path / f), 32))
        for i, f in enumerate(files)
    )


@pytest.mark.parametrize(
    "name", ["my [pics] * {x} ?", "Ünïcode ürgh", "test", "with space"]
)
def test_folder_names_that_look_like_patterns(name, tmp_path):
    assert (
        len(
            ImageTextDataset.from_folder(folder(tmp_path, record(), name=name), size=16)
        )
        == 1
    )


def test_relative_folder_and_symbolic_link_to_a_folder(tmp_path, monkeypatch):
    path = folder(tmp_path, record(file="sub/a.png"), files=("sub/a.png",))
    (tmp_path / "link").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    assert (
        len(ImageTextDataset.from_folder("pictures", size=16))
        == len(ImageTextDataset.from_folder(tmp_path / "link", size=16))
        == 1
    )


def test_csv_with_commas_quotes_and_several_columns(tmp_path):
    path = folder(
        tmp_path,
        text=(
            'file_name,short,long\r\na.png,red,"a ""red"" dragon, '
            'big"\r\nb.png,,"two\nlines"\r\n'
        ),
        files=("a.png", "b.png"),
        metadata="metadata.csv",
    )
    d = ImageTextDataset.from_folder(path, size=16, text_column=("short", "long"))
    assert d.captions == [("red", 'a "red" dragon, big'), ("two lines",)]


@pytest.mark.parametrize(
    "records",
    [
        [record(["one", "two"]), record(["three"], "b.png")],
        [record("one"), record("three", "b.png"), record("two")],
    ],
)
def test_several_captions_as_lists_or_lines(records, tmp_path):
    d = ImageTextDataset.from_folder(
        folder(tmp_path, *records, files=("a.png", "b.png")), size=16
    )
    assert d.captions == [("one", "two"), ("three",)] and d[0][1] == "one"
    seen = {t for e in range(20) for b in d.batches(2, epoch=e) for t in b.captions}
    assert seen == {"one", "two", "three"}


def test_byte_order_mark_and_blank_lines(tmp_path):
    path = folder(
        tmp_path,
        text="\ufeff"
        + json.dumps(record())
        + "\r\n\r\n"
        + json.dumps(record("x", "b.png")),
        files=("a.png", "b.png"),
    )
    assert len(ImageTextDataset.from_folder(path, size=16)) == 2


def test_splits_in_subfolders(tmp_path):
    for split in ("train", "test"):
        folder(tmp_path, record(f"{DRAGON} {split}"), name=f"pictures/{split}")
    assert (
        ImageTextDataset.from_folder(tmp_path / "pictures", size=16, split="test")[0][1]
        == f"{DRAGON} test"
    )
    m = refusal(
        ImageTextDataset.from_folder, tmp_path / "pictures", size=16, split="tset"
    )
    assert "'tset'" in m and "did you mean 'test'" in m and "train" in m


def test_unlisted_images_are_named(tmp_path):
    path = folder(tmp_path, record(), files=("a.png", "b.png", "sub/c.jpg"))
    with pytest.warns(UserWarning, match="2 images are not in .*the first is 'b.png'"):
        assert len(ImageTextDataset.from_folder(path, size=16)) == 1


@pytest.mark.filterwarnings("error::UserWarning")
def test_nothing_is_left_behind(tmp_path, monkeypatch):
    """The folder is only read.

    The cache of `datasets` goes to a temporary folder that is removed, or to
    `cache_dir`.
    """
    (tmp_path / "t").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    path = folder(tmp_path, record())
    ImageTextDataset.from_folder(path, size=16)
    assert (
        sorted(os.listdir(path)) == ["a.png", "metadata.jsonl"]
        and os.listdir(tmp_path / "t") == []
    )
    ImageTextDataset.from_folder(path, size=16, cache_dir=tmp_path / "kept")
    assert os.listdir(tmp_path / "kept")


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda p: p / "nowhere", "check the path"),
        (lambda p: (p / "empty").mkdir() or p / "empty", "is empty; put images"),
        (
            lambda p: folder(p, metadata=None),
            "no metadata.jsonl or metadata.csv; write one line",
        ),
        (lambda p: folder(p, record()) / "a.png", "is a file, not a folder"),
        (lambda p: folder(p, text=""), "lists no image"),
        (
            lambda p: folder(p, text="file_name,text\n", metadata="metadata.csv"),
            "lists no image",
        ),
        (
            lambda p: (
                (folder(p, record()) / "metadata.csv").write_text("x")
                and p / "pictures"
            ),
            "both metadata.jsonl and metadata.csv",
        ),
    ],
)
def test_folders_without_use(make, says, tmp_path):
    path = make(tmp_path)
    assert says in (m := refusal(ImageTextDataset.from_folder, path, size=16)) and (
        path.name in m or path.parent.name in m
    )


GOOD = json.dumps(record())


@pytest.mark.parametrize(
    "text, line, says",
    [
        (GOOD + "\n{oops\n", 2, "not valid JSON"),
        (GOOD + "\n\n[1, 2]\n", 3, "not a JSON object"),
        ('{"text": "x"}', 1, "no file_name"),
        ('{"file_name": 3, "text": "x"}', 1, "no file_name"),
        ('{"file_name": "a.png", "txt": "x"}', 1, "did you mean 'txt'"),
        ('{"file_name": "a.png"}', 1, "no caption"),
        (GOOD + "\n" + json.dumps(record(["x"])), 2, "make them all lists"),
        (GOOD.encode() + b'\n{"file_name": "a.png", "text": "\xff"}', 2, "not UTF-8"),
        (json.dumps(record(file="b.png")), 1, "'b.png' is missing; add it"),
        (json.dumps(record(file="sub")), 1, "'sub' is missing"),
        (json.dumps(record(file="../outside.png")), 1, "leaves the folder"),
        (json.dumps(record(file="sub/../../outside.png")), 1, "leaves the folder"),
        (json.dumps(record(file="/etc/hostname")), 1, "leaves the folder"),
        (json.dumps(record(file="C:\\x.png")), 1, "leaves the folder"),
        (json.dumps(record(file="..\\outside.png")), 1, "leaves the folder"),
        (json.dumps(record(file="file:///etc/hostname")), 1, "leaves the folder"),
    ],
)
def test_bad_metadata_lines(text, line, says, tmp_path):
    make_image().save(tmp_path / "outside.png")
    m = refusal(
        ImageTextDataset.from_folder,
        folder(tmp_path, text=text, files=("a.png", "sub/c.png")),
        size=16,
    )
    assert f"metadata.jsonl', line {line}:" in m and says in m


@pytest.mark.parametrize(
    "text, line, says",
    [
        ("file_name,text\na.png,red, big\n", 2, "more cells than the heading"),
        ('file_name,text\na.png,"red\n', 2, "not valid CSV"),
        ("file_name,text\na.png\n", 2, "caption is missing"),
        ("name,text\na.png,x\n", 1, "no file_name"),
        ("file_name,text\na.png,null\n", 2, "reads the caption 'null' as None"),
        ("file_name,text\na.png,12\n", 2, "use a metadata.jsonl"),
    ],
)
def test_bad_csv_lines(text, line, says, tmp_path):
    """The last two: `datasets` reads a CSV by guessing types, so the captions null and
    12 are not text any more.
    """
    m = refusal(
        ImageTextDataset.from_folder,
        folder(tmp_path, text=text, metadata="metadata.csv"),
        size=16,
    )
    assert f"metadata.csv', line {line}:" in m and says in m


def test_symbolic_links(tmp_path):
    make_image().save(tmp_path / "outside.png")
    path = folder(tmp_path, record(file="link.png"))
    (path / "link.png").symlink_to(tmp_path / "outside.png")
    assert (
        "symbolic link that leaves the folder; copy"
        in (m := refusal(ImageTextDataset.from_folder, path, size=16))
        and "line 1" in m
        and "link.png" in m
    )
    (path / "link.png").unlink()
    (path / "link.png").symlink_to("a.png")  # within the folder
    with pytest.warns(UserWarning):
        assert len(ImageTextDataset.from_folder(path, size=16)) == 1


def test_a_linked_subfolder_that_leaves(tmp_path):
    folder(tmp_path, record(), name="other")
    path = folder(tmp_path, record(file="sub/a.png"), files=())
    (path / "sub").symlink_to(tmp_path / "other")
    assert "leaves the folder" in refusal(ImageTextDataset.from_folder, path, size=16)


def test_what_datasets_cannot_read_is_one_line(tmp_path):
    path = folder(tmp_path, record() | {"n": 3}, record() | {"n": "three"})
    assert (
        "metadata.jsonl" in (m := refusal(ImageTextDataset.from_folder, path, size=16))
        and "same keys and kinds" in m
    )
    path = folder(tmp_path, record() | {"image": "x"}, name="second")
    assert "rename that column" in refusal(ImageTextDataset.from_folder, path, size=16)


def test_read_metadata_gives_line_numbers(tmp_path):
    path = folder(
        tmp_path, text="\n" + GOOD + "\n\n" + json.dumps(record("x", "b.png"))
    )
    assert [
        (r.file, r.captions, r.line) for r in read_metadata(path / "metadata.jsonl")
    ] == [("a.png", (DRAGON,), 2), ("b.png", ("x",), 4)]


# ---- batches


@pytest.fixture(scope="module")
def eleven(tmp_path_factory):
    "A folder of eleven images, some with two captions, some that say left."
    path = tmp_path_factory.mktemp("eleven")
    for i in range(11):
        make_image(20 + i, 30).save(path / f"{i}.png")
    (path / "metadata.jsonl").write_text(
        "\n".join(
            json.dumps(
                record(
                    [f"dragon {i} facing left"] + [f"dragon {i}"] * (i % 2), f"{i}.png"
                )
            )
            for i in range(11)
        )
    )
    return path


@pytest.fixture(scope="module")
def set_of_eleven(eleven):
    return ImageTextDataset.from_folder(eleven, size=32)


@pytest.mark.parametrize("flip", [False, True])
def test_an_epoch_holds_each_image_once(set_of_eleven, flip):
    batches = list(set_of_eleven.batches(4, seed=3, flip=flip))
    assert [len(b) for b in batches] == [4, 4, 3]
    assert sorted(i for b in batches for i in b.indices.tolist()) == list(range(11))
    assert all(
        b.images.shape == (len(b), 3, 32, 32)
        and b.images.min() >= -1
        and b.images.max() <= 1
        for b in batches
    )
    assert all(
        f"dragon {i}" in t
        for b in batches
        for i, t in zip(b.indices.tolist(), b.captions)
    )


def test_order_depends_on_seed_and_epoch_only(set_of_eleven):
    first = list(set_of_eleven.batches(4, seed=3, epoch=5, flip=True))
    torch.manual_seed(99)
    torch.rand(7)
    assert same(set_of_eleven.batches(4, seed=3, epoch=5, flip=True), first)
    orders = [
        [
            i
            for b in set_of_eleven.batches(4, seed=s, epoch=e)
            for i in b.indices.tolist()
        ]
        for s, e in ((3, 5), (3, 6), (4, 5))
    ]
    assert orders[0] != orders[1] and orders[0] != orders[2]


def test_drawing_batches_leaves_the_global_generator_alone(set_of_eleven):
    state = torch.get_rng_state()
    list(set_of_eleven.batches(4, flip=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_resuming_gives_the_rest_exactly(set_of_eleven, start):
    options = dict(seed=3, epoch=2, flip=True)
    assert same(
        set_of_eleven.batches(4, **options, start=start),
        list(set_of_eleven.batches(4, **options))[start:],
    )


def test_choices_do_not_depend_on_the_batch_size(set_of_eleven):
    by_image = [
        {
            i: (x, t)
            for b in set_of_eleven.batches(n, seed=1, flip=True)
            for i, x, t in zip(b.indices.tolist(), b.images, b.captions)
        }
        for n in (1, 4)
    ]
    assert all(
        by_image[0][i][1] == by_image[1][i][1]
        and torch.equal(by_image[0][i][0], by_image[1][i][0])
        for i in range(11)
    )


def test_cache_or_not_gives_the_same_bits(eleven, set_of_eleven):
    """The budget is exact: n * 3 * size * size bytes are kept, one byte less is not
    enough.
    """
    without = ImageTextDataset.from_folder(
        eleven, size=32, cache_bytes=11 * 3 * 32 * 32 - 1
    )
    exact = ImageTextDataset.from_folder(eleven, size=32, cache_bytes=11 * 3 * 32 * 32)
    assert without.cache is None and exact.cache.dtype == torch.uint8
    assert same(
        without.batches(4, seed=3, flip=True), exact.batches(4, seed=3, flip=True)
    ) and torch.equal(without[7][0], exact[7][0])


def test_flipping_does_not_touch_the_cache(set_of_eleven):
    before = set_of_eleven.cache.clone()
    list(set_of_eleven.batches(4, flip=True))
    assert torch.equal(set_of_eleven.cache, before)


def test_drop_last_and_no_shuffle(set_of_eleven):
    assert [b.indices.tolist() for b in set_of_eleven.batches(4, shuffle=False)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10],
    ]
    assert [len(b) for b in set_of_eleven.batches(4, drop_last=True)] == [4, 4]
    assert (
        list(set_of_eleven.batches(12, drop_last=True)) == []
        and len(list(set_of_eleven.batches(12))) == 1
    )


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(batch_size=0), "batch_size"),
        (dict(batch_size="4"), "batch_size"),
        (dict(batch_size=True), "batch_size"),
        (dict(batch_size=4, start=4), "from 0 to 3"),
        (dict(batch_size=4, start=-1), "start"),
        (dict(batch_size=4, start=3, drop_last=True), "from 0 to 2"),
    ],
)
def test_bad_batch_options_fail_at_the_call(set_of_eleven, options, says, untyped):
    assert says in refusal(set_of_eleven.batches, **options)


def test_indexing(set_of_eleven):
    image, caption = set_of_eleven[-1]
    assert (
        image.shape == (3, 32, 32)
        and caption == "dragon 10 facing left"
        and len(list(set_of_eleven)) == 11
    )
    for i in (11, -12):
        with pytest.raises(IndexError):
            set_of_eleven[i]


def test_an_image_that_breaks_later_is_named(tmp_path):
    path = folder(tmp_path, record())
    d = ImageTextDataset.from_folder(path, size=16, cache_bytes=0)
    (path / "a.png").write_bytes((path / "a.png").read_bytes()[:60])
    assert "a.png" in refusal(lambda: d[0]) and "a.png" in refusal(
        lambda: list(d.batches(1))
    )


def test_worker_processes_and_pickling_mi9(set_of_eleven, eleven):
    "MI-9: nothing but images and text in `__getitem__`, so worker processes work."
    assert torch.equal(
        pickle.loads(
            pickle.dumps(ImageTextDataset.from_folder(eleven, size=32, cache_bytes=0))
        )[3][0],
        set_of_eleven[3][0],
    )
    images = torch.cat(
        [
            x
            for x, _ in torch.utils.data.DataLoader(
                set_of_eleven, batch_size=4, num_workers=2
            )
        ]
    )
    assert torch.equal(images, torch.stack([x for x, _ in set_of_eleven]))


def test_batch_to_moves_everything():
    b = next(ImageTextDataset.from_critters(4, size=16).batches(4)).to("meta")
    assert (
        isinstance(b, Batch)
        and {
            b.images.device.type,
            b.indices.device.type,
            *(v.device.type for v in b.attributes.values()),
        }
        == {"meta"}
        and len(b) == 4
    )
    with pytest.raises(AttributeError):
        b.captions = []


def test_critters_come_as_drawn():
    drawn, d = (
        critters.sample_critters(20, size=32, seed=6, split="val"),
        ImageTextDataset.from_critters(20, size=32, seed=6, split="val"),
    )
    for b in d.batches(8):
        assert (
            b.images - drawn.images[b.indices]
        ).abs().max() <= 1 / 255 + 1e-6 and b.captions == [
            drawn.captions[i] for i in b.indices.tolist()
        ]
        assert all(
            torch.equal(v, drawn.attributes[k][b.indices])
            for k, v in b.attributes.items()
        )
    assert "did you mean 'held_out'" in refusal(
        ImageTextDataset.from_critters, 2, split="heldout"
    )


# ---- hub


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """A folder in the form that a hub uses, in two files.

    Among the images one with alpha and one EXIF-rotated.
    """
    import datasets

    root = tmp_path_factory.mktemp("hub")
    exif = Image.Exif()
    exif[0x0112] = 6
    images = [make_image(20 + i, 30) for i in range(9)] + [
        reopened(
            make_image(32, 16).transpose(Image.Transpose.ROTATE_90), "png", exif=exif
        ),
        Image.new("RGBA", (8, 8), (0, 0, 0, 0)),
    ]
    raw = []
    for p in images:
        b = io.BytesIO()
        p.save(b, "png", exif=p.getexif())
        raw.append({"bytes": b.getvalue(), "path": None})
    table = datasets.Dataset.from_dict(
        {
            "picture": raw,
            "said": [f"dragon {i}" for i in range(11)],
            "more": [["x"]] * 11,
        }
    ).cast_column("picture", datasets.Image())
    (root / "data").mkdir()
    for k, rows in enumerate((range(6), range(6, 11))):
        table.select(rows).to_parquet(root / "data" / f"train-0000{k}-of-00002.parquet")
    return root


@pytest.fixture(scope="module")
def hub(parquet, tmp_path_factory):
    return dict(
        dataset_id=str(parquet),
        image_column="picture",
        text_column="said",
        size=32,
        cache_dir=tmp_path_factory.mktemp("cache"),
    )


def test_hub_images_are_read_like_files(hub):
    d = ImageTextDataset.from_hub(**hub)
    assert [t for _, t in d] == [f"dragon {i}" for i in range(11)] and torch.equal(
        d.cache[3], letterbox(make_image(23, 30), 32)
    )
    assert (
        torch.equal(d.cache[9], letterbox(make_image(32, 16), 32))
        and d.cache[10].min() == 255
    )
    assert same(
        d.batches(4), ImageTextDataset.from_hub(**hub, cache_bytes=0).batches(4)
    )


def test_streaming_gives_the_same_images(hub):
    d, s = (
        ImageTextDataset.from_hub(**hub),
        ImageTextDataset.from_hub(**hub, streaming=True, buffer=4),
    )
    assert isinstance(s, StreamingImageTextDataset) and same(
        d.batches(4, shuffle=False, flip=True), s.batches(4, shuffle=False, flip=True)
    )
    whole = list(s.batches(4, seed=2, epoch=1))
    assert sorted(i for b in whole for i in b.indices.tolist()) == list(range(11)) and [
        i for b in whole for i in b.indices.tolist()
    ] != list(range(11))
    assert (
        same(s.batches(4, seed=2, epoch=1), whole)
        and same(s.batches(4, seed=2, epoch=1, start=1), whole[1:])
        and not same(s.batches(4, seed=2, epoch=2), whole)
    )
    assert [len(b) for b in s.batches(4, drop_last=True)] == [4, 4]
    assert [t for _, t in s] == [f"dragon {i}" for i in range(11)]


def test_streaming_with_workers_shows_each_row_once(hub):
    s = ImageTextDataset.from_hub(**hub, streaming=True)
    seen = [
        t
        for _, texts in torch.utils.data.DataLoader(s, batch_size=2, num_workers=2)
        for t in texts
    ]
    assert sorted(seen) == sorted(f"dragon {i}" for i in range(11))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "change, says",
    [
        (dict(image_column="pictures"), "did you mean 'picture'"),
        (dict(text_column="text"), "choose from"),
        (dict(text_column=["said", "sayd"]), "did you mean 'said'"),
        (dict(split="trian"), "did you mean 'train'"),
    ],
)
def test_hub_columns_and_splits(hub, change, says, streaming):
    m = refusal(ImageTextDataset.from_hub, **hub | change, streaming=streaming)
    assert says in m and hub["dataset_id"] in m


def test_hub_column_without_images(hub):
    assert "name another image_column" in refusal(
        ImageTextDataset.from_hub, **hub | {"image_column": "more"}
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_rows_that_are_broken_are_numbered(streaming, tmp_path, tmp_path_factory):
    import datasets

    cache = tmp_path_factory.mktemp("cache")
    rows = {
        "image": [{"bytes": b"not a picture", "path": None}, None],
        "text": ["x", "y"],
    }
    datasets.Dataset.from_dict(
        rows,
        features=datasets.Features(
            {"image": datasets.Image(), "text": datasets.Value("string")}
        ),
    ).to_parquet(tmp_path / "train.parquet")

    def walk():
        return list(
            ImageTextDataset.from_hub(
                str(tmp_path), streaming=streaming, size=16, cache_dir=cache
            ).batches(1, shuffle=False)
        )

    assert "row 0" in (m := refusal(walk)) and "not an image" in m
    datasets.Dataset.from_dict(
        {"image": rows["image"], "text": ["x", ""]},
        features=datasets.Features(
            {"image": datasets.Image(), "text": datasets.Value("string")}
        ),
    ).to_parquet(tmp_path / "train.parquet")
    if not streaming:
        assert "row 1: the caption is empty" in refusal(walk)


@pytest.mark.parametrize("streaming", [False, True])
def test_no_network_is_one_line_at_once(streaming, monkeypatch, tmp_path):
    """With no name service the hub is not asked again and again, and the library's own
    switch is put back.
    """
    import socket
    import time

    import datasets

    def fail(*_, **__):
        raise socket.gaierror("no network")

    for k in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(k, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    before, start = datasets.config.HF_HUB_OFFLINE, time.monotonic()
    m = refusal(
        ImageTextDataset.from_hub,
        "lambdalabs/naruto-blip-captions",
        streaming=streaming,
        cache_dir=tmp_path,
    )
    assert "'lambdalabs/naruto-blip-captions'" in m and "connect to the network" in m
    assert time.monotonic() - start < 5 and datasets.config.HF_HUB_OFFLINE == before


def test_unknown_hub_id(monkeypatch):
    import datasets

    def missing(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError(
            "Dataset 'no/body' doesn't exist\non the Hub"
        )

    monkeypatch.setattr(datasets, "load_dataset", missing)
    monkeypatch.setattr(data, "_online", lambda: True)
    assert (
        "'no/body'" in (m := refusal(ImageTextDataset.from_hub, "no/body"))
        and "https://huggingface.co/datasets" in m
    )


def test_progress_bars_of_datasets_are_put_back(eleven):
    import datasets

    before = datasets.are_progress_bars_disabled()
    ImageTextDataset.from_folder(eleven, size=16)
    assert datasets.are_progress_bars_disabled() == before


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 60), st.integers(1, 20), st.integers(0, 5))
def test_shuffle_buffer_keeps_every_item_once_and_looks_no_further_than_it_holds(
    n, size, seed
):
    out = list(shuffle_buffer(range(n), size, torch.Generator().manual_seed(seed)))
    assert sorted(out) == list(range(n)) and all(
        place >= i - size + 1 for place, i in enumerate(out)
    )


# ---- whatever you have


def test_open_dataset_decides(eleven, parquet, hub, tmp_path):
    assert (
        len(open_dataset("critters", size=16, n=5)) == 5
        and len(open_dataset(eleven, size=16)) == 11
    )
    assert (
        len(
            open_dataset(
                parquet,
                size=16,
                **{k: hub[k] for k in ("image_column", "text_column", "cache_dir")},
            )
        )
        == 11
    )
    assert isinstance(open_dataset(eleven, size=16), ImageTextDataset)


@pytest.mark.parametrize(
    "source, says",
    [
        ("crittters", "did you mean 'critters'"),
        ("./nowhere", "check the path"),
        ("a/b/c", "check the path"),
        ("", "choose from"),
    ],
)
def test_open_dataset_says_when_it_cannot(source, says):
    assert says in refusal(open_dataset, source)


def test_open_dataset_of_a_file(eleven):
    assert "is a file, not a folder" in refusal(open_dataset, eleven / "0.png")


def test_import_is_light():
    "No `datasets`, no pandas, no network at import."
    code = (
        "import sys, socket; socket.socket.connect = None; import "
        "t2i_tutorial.data; print([m for m in ('datasets', 'pandas', 'pyarrow', "
        "'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert out.stdout.strip() == "[]", out.stdout + out.stderr


def test_real_pictures(pictures_folder):
    """A real folder opens whole.

    As many images as lines, each with a caption, none blank.
    """
    d = open_dataset(pictures_folder, size=32)
    lines = [
        line
        for line in (pictures_folder / "metadata.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
        if line.strip()
    ]
    assert len(d) == len({json.loads(line)["file_name"] for line in lines}) and all(
        t for texts in d.captions for t in texts
    )
    if pictures_folder.name == "crawl_tiles":
        assert len(d) == 1035
    assert (d.cache.flatten(1).float().std(1) > 0).all()
    assert sum(len(b) for b in d.batches(64)) == len(d)


# ---- whether two data sets are the same (F3)


def changed(before, **options):
    "What a data set of the same folder says of a summary made before."
    d = ImageTextDataset.from_folder(before[0], **{"size": 16} | options)
    return describe_data_change(before[1], d.summary())


@pytest.fixture
def three(tmp_path):
    "A folder of three images of different sizes, and the summary of its data set."
    files = [f"{i}.png" for i in range(3)]
    path = folder(tmp_path, *[record(f"x {f}", f) for f in files], files=files)
    for i, f in enumerate(files):
        make_image(20 + i, 30).save(path / f)
    return path, ImageTextDataset.from_folder(path, size=16).summary()


def test_fingerprint_is_the_same_for_the_same_data_f3(three, tmp_path):
    "Wherever the folder is, in memory or not, and from one process to the next."
    path, before = three
    moved = path.rename(tmp_path / "elsewhere")
    for cache_bytes in (0, 2**29):
        d = ImageTextDataset.from_folder(moved, size=16, cache_bytes=cache_bytes)
        assert d.fingerprint() == before["digest"] == d.summary()["digest"]
        assert json.loads(json.dumps(d.summary())) == before
        assert describe_data_change(before, d.summary()) == ""


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda p: rewrite(p, lambda r: r[:2]), "1 image removed"),
        (lambda p: rewrite(p, lambda r: [*r, more(p, 3)]), "1 image added"),
        (
            lambda p: rewrite(p, lambda r: [*r[1:], more(p, 3), more(p, 4)]),
            "2 images added, 1 image removed",
        ),
        (lambda p: more(p, 2), "1 image added, 1 image removed"),  # another content
        (
            lambda p: rewrite(
                p, lambda r: [x | {"text": "new"} for x in r[:2]] + r[2:]
            ),
            "captions of 2 images changed",
        ),
        (lambda p: rewrite(p, lambda r: r[::-1]), "the same images in another order"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*left out:UserWarning")
def test_what_changed_in_a_folder_is_said_f3(three, change, says):
    change(three[0])
    assert changed(three) == says


def more(path, i):
    "One more image in a folder, and its record."
    make_image(40 + i, 30).save(path / f"{i}.png")
    return record(f"x {i}", f"{i}.png")


def rewrite(path, change):
    "Rewrite the metadata of a folder."
    file = path / "metadata.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("\n".join(map(json.dumps, change(records))))


def test_another_size_or_source_is_said_f3(three):
    assert changed(three, size=32) == "size 32 instead of 16"
    drawn = [
        ImageTextDataset.from_critters(*args, seed=seed).summary()
        for *args, seed in ((4, 16, 0), (4, 16, 0), (4, 16, 1), (5, 16, 0))
    ]
    assert drawn[0] == drawn[1] and drawn[0]["contents"] == ""
    said = describe_data_change(drawn[0], drawn[2])
    assert "seed 1) instead of critters (4 of the split train, seed 0)" in said
    assert "critters (5 of" in describe_data_change(drawn[0], drawn[3])
    assert "instead of files" in describe_data_change(three[1], drawn[0])


def test_fingerprints_of_other_sources_f3(hub):
    "A table is read for its bytes, a set of another kind for its pixels."
    d = ImageTextDataset.from_hub(**hub)
    assert d.fingerprint() == ImageTextDataset.from_hub(**hub).fingerprint()
    streams = [
        ImageTextDataset.from_hub(**hub | {"size": s}, streaming=True)
        for s in (16, 16, 32)
    ]
    assert len({s.fingerprint() for s in streams}) == 2
    assert "(split train: picture, said)" in streams[0].summary()["source"]
    streams[0].split = "test"
    assert streams[0].fingerprint() != streams[1].fingerprint()
    one, two = (torch.full((2, 3, 16, 16), v, dtype=torch.uint8) for v in (1, 2))
    own = [
        ImageTextDataset(pixels.__getitem__, captions, 16)
        for pixels, captions in (
            (one, [("x",)] * 2),
            (two, [("x",)] * 2),
            (two, [("x",), ("y",)]),
        )
    ]
    prints = [x.summary() for x in own]
    assert describe_data_change(*prints[:2]) == "2 images added, 2 images removed"
    assert describe_data_change(*prints[1:]) == "captions of 1 image changed"


# ---- metadata of image files that are odd (F7)


def tiff_block(*entries, tail=b""):
    "An EXIF block of these (tag, type, count, four bytes); `tail` starts after them."
    out = b"II*\0" + struct.pack("<LH", 8, len(entries))
    for tag, kind, count, value in entries:
        out += struct.pack("<HHL", tag, kind, count) + value
    return out + bytes(4) + tail


TURNED = (0x0112, 3, 1, struct.pack("<HH", 6, 0))
AFTER_TWO = struct.pack("<L", 8 + 2 + 2 * 12 + 4)
ODD_EXIF = {
    "text for a number": tiff_block(TURNED, (0x011A, 2, 4, b"abc\0")),
    "bytes for a number": tiff_block(TURNED, (0x011A, 1, 4, b"abc\0")),
    "text for a width": tiff_block(TURNED, (0x0100, 2, 4, b"abc\0")),
    "not a number": tiff_block(
        TURNED, (0x011A, 12, 1, AFTER_TWO), tail=struct.pack("<d", float("nan"))
    ),
    "one by zero": tiff_block(
        TURNED, (0x011A, 5, 1, AFTER_TWO), tail=struct.pack("<LL", 1, 0)
    ),
    "negative": tiff_block(TURNED, (0x011A, 9, 1, struct.pack("<l", -5))),
    "beyond the end": tiff_block(TURNED, (0x011A, 5, 1, struct.pack("<L", 99_999))),
    "a part that is text": tiff_block(TURNED, (0x8769, 2, 4, b"abc\0")),
}
NO_ORIENTATION = {
    "nonsense": b"nonsense",
    "cut": b"II*\0",
    "text": tiff_block((0x0112, 2, 4, b"abc\0")),
    "one by zero": tiff_block(
        (0x0112, 5, 1, struct.pack("<L", 26)), tail=struct.pack("<LL", 1, 0)
    ),
    "99": tiff_block((0x0112, 3, 1, struct.pack("<HH", 99, 0))),
}


def with_exif(format, block):
    "The content of a file of a wide image with this EXIF block."
    b = io.BytesIO()
    options = {"lossless": True} if format == "webp" else {"quality": 95}
    make_image(32, 16).save(b, format, exif=b"Exif\0\0" + block, **options)
    return b.getvalue()


def turned(p):
    return p.transpose(Image.Transpose.ROTATE_270)


def near(a, b):
    return (a.int() - b.int()).abs().float().mean() < 4


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("format", ["jpeg", "webp", "png"])
@pytest.mark.parametrize("name", ODD_EXIF)
def test_odd_exif_values_do_no_harm_and_the_orientation_counts_f7(format, name):
    image = load_image(with_exif(format, ODD_EXIF[name]), 32)
    assert near(image, letterbox(turned(make_image(32, 16)), 32))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("format", ["jpeg", "webp", "png"])
@pytest.mark.parametrize("name", NO_ORIENTATION)
def test_an_orientation_that_cannot_be_read_turns_nothing_f7(format, name):
    image = load_image(with_exif(format, NO_ORIENTATION[name]), 32)
    assert near(image, letterbox(make_image(32, 16), 32))


def jpeg_with(*segments):
    "A JPEG of a wide image with these (marker, body) before the rest."
    b = io.BytesIO()
    make_image(32, 16).save(b, "jpeg", quality=95)
    parts = [
        b"\xff" + bytes([m]) + struct.pack(">H", len(body) + 2) + body
        for m, body in segments
    ]
    return b.getvalue()[:2] + b"".join(parts) + b.getvalue()[2:]


def png_with(kind, body, after=False, check=0):
    "A PNG of a wide image with this chunk before or after its pixels."
    b = io.BytesIO()
    make_image(32, 16).save(b, "png")
    at = b.getvalue().index(b"IEND" if after else b"IDAT") - 4
    crc = struct.pack(">L", zlib.crc32(kind + body) ^ check)
    chunk = struct.pack(">L", len(body)) + kind + body + crc
    return b.getvalue()[:at] + chunk + b.getvalue()[at:]


EXIF = (0xE1, b"Exif\0\0" + tiff_block(TURNED))


@pytest.mark.parametrize(
    "segment",
    [
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"ICC_PROFILE\0\1\1not a profile"),
        (
            0xE2,
            b"MPF\0" + tiff_block((0xB001, 4, 1, b"\2\0\0\0"), (0xB002, 7, 4, b"abcd")),
        ),
        (0xE0, b"JFIF\0"),
        (0xEE, b"Adobe"),
        (0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\xff\xff\xff\xff"),
    ],
    ids=["short profile", "no profile", "frames", "jfif", "adobe", "photoshop"],
)
def test_a_jpeg_with_other_broken_metadata_is_read_and_turned_f7(segment):
    assert near(
        load_image(jpeg_with(segment), 32), letterbox(make_image(32, 16), 32)
    ) and near(
        load_image(jpeg_with(EXIF, segment), 32),
        letterbox(turned(make_image(32, 16)), 32),
    )


HUGE = zlib.compress(bytes(3_000_000))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    "kind, body",
    [
        (b"zTXt", b"key\0\7method seven"),
        (b"zTXt", b"key\0\0" + HUGE),
        (b"iTXt", b"key\0\1\0\0\0" + HUGE),
        (b"tEXt", b"\xff\xfe"),
        (b"iCCP", b"name\0\0not a profile"),
        (b"iCCP", b"name\0\5method five"),
        (b"iCCP", b"name\0\0" + HUGE),
        (b"iCCP", b""),
        (b"gAMA", b"x"),
        (b"pHYs", b"x"),
        (b"acTL", b"x"),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 9\nzzzz")),
    ],
)
def test_a_png_with_odd_chunks_keeps_every_bit_f7(kind, body, after):
    image = load_image(png_with(kind, body, after), 32)
    assert torch.equal(image, letterbox(make_image(32, 16), 32))


def test_a_png_with_a_wrong_checksum_in_its_metadata_f7(tmp_path):
    "Of a comment, and of an orientation; but not of the pixels or of transparency."
    whole = letterbox(make_image(32, 16), 32)
    for after in (False, True):
        assert torch.equal(load_image(png_with(b"tEXt", b"a\0b", after, 1), 32), whole)
    exif = png_with(b"eXIf", tiff_block(TURNED), check=1)
    assert torch.equal(load_image(exif, 32), letterbox(turned(make_image(32, 16)), 32))
    assert "in memory" in refusal(load_image, png_with(b"tRNS", b"x"), 32)
    (tmp_path / "a.png").write_bytes(png_with(b"zTXt", b"key\0\7x"))
    path = folder(tmp_path, record(), name=".", files=())
    assert torch.equal(ImageTextDataset.from_folder(path, size=32).cache[0], whole)


def test_32_bit_integers_are_refused_with_their_range(tmp_path):
    "Small: such a TIFF gave a black image; 16 bits of older versions of Pillow pass."
    for low, high in ((0, 255), (0, 4000), (-5, 70_000)):
        levels = np.linspace(low, high, 400).round().astype(np.int32).reshape(20, 20)
        Image.fromarray(levels).save(tmp_path / "a.tiff")
        m = refusal(load_image, tmp_path / "a.tiff", 16)
        assert f"32-bit integers (from {low} to {high})" in m and "16-bit PNG" in m
    refusal(letterbox, Image.fromarray(levels), 16)
    dark = Image.fromarray(np.full((20, 20), 257, np.int32))
    dark.format = "PNG"
    assert letterbox(dark, 16).unique().tolist() == [1]


# ---- the middle of an image


@pytest.mark.parametrize("w, h", [(64, 32), (32, 65), (40, 40), (48, 96)])
def test_center_crop_has_no_bars_and_keeps_proportions(w, h):
    out = center_crop(make_image(w, h), 32)
    left, top = (w - min(w, h)) // 2, (h - min(w, h)) // 2
    box = (left, top, left + min(w, h), top + min(w, h))
    assert torch.equal(out, letterbox(make_image(w, h).crop(box), 32))
    assert not (out == 255).all(0).any()


def test_options_reach_a_folder(tmp_path):
    "Missing: crop, text_column, max_caption and split, through `open_dataset`."
    long = [{"file_name": "a.png", "words": "x" * 1200}]
    path = folder(tmp_path, *long, name="pictures/val")
    make_image(64, 32).save(path / "a.png")
    options = dict(size=32, text_column="words", max_caption=1200, split="val")
    d = open_dataset(path.parent, **options, crop=True)
    assert torch.equal(d.cache[0], center_crop(make_image(64, 32), 32))
    assert len(d.captions[0][0]) == 1200 and d.fit == "crop"
    uncached = open_dataset(path.parent, **options, crop=True, cache_bytes=0)
    assert torch.equal(uncached[0][0], d[0][0])
    said = describe_data_change(
        open_dataset(path.parent, **options).summary(), d.summary()
    )
    assert said == "fit crop instead of letterbox"


@pytest.mark.parametrize("streaming", [False, True])
def test_crop_and_caption_length_of_the_hub(hub, streaming):
    d = open_dataset(
        hub["dataset_id"], **_but(hub, "dataset_id"), crop=True, streaming=streaming
    )
    batch = next(d.batches(11, shuffle=False))
    assert torch.equal(batch.images[0], from_uint8(center_crop(make_image(20, 30), 32)))
    assert torch.equal(batch.images[9], from_uint8(center_crop(make_image(32, 16), 32)))
    assert d.summary()["fit"] == "crop"
    with pytest.raises(UserError, match="more than 5"):
        short = open_dataset(
            hub["dataset_id"],
            **_but(hub, "dataset_id"),
            max_caption=5,
            streaming=streaming,
        )
        list(short.batches(4))


def _but(options, name):
    return {k: v for k, v in options.items() if k != name}


@pytest.mark.parametrize(
    "option",
    [{"text_column": "words"}, {"max_caption": 5}, {"crop": True}],
    ids=["text_column", "max_caption", "crop"],
)
def test_options_that_critters_do_not_have_are_refused(option):
    (name,) = option
    m = refusal(open_dataset, "critters", size=16, n=2, **option)
    assert name in m and "leave it out" in m


@pytest.mark.parametrize("n", [0, -3, True, "9"])
def test_bad_caption_lengths(n, untyped, tmp_path):
    path = folder(tmp_path, record())
    for source in (path, "owner/name"):
        m = refusal(open_dataset, source, max_caption=n)
        assert "max_caption must be a whole number" in m and repr(n) in m


# ---- captions in .txt files, and captions that are all the same (F4)


def texts(tmp_path, files, **captions):
    "A folder of these images with these .txt files, and no metadata."
    path = folder(tmp_path, files=files, metadata=None)
    for name, text in captions.items():
        (path / f"{name.replace('__', '/')}.txt").write_text(text, encoding="utf-8")
    return path


def test_text_files_beside_the_images_are_captions_f4(tmp_path):
    path = texts(
        tmp_path, ("a.png", "b/c.jpg"), a="\ufeffa red\ndragon\n", b__c="a blue one"
    )
    (path / "b" / "._c.jpg").write_bytes(b"of another system, hidden")
    d = open_dataset(path, size=16)
    assert d.captions == [("a red dragon",), ("a blue one",)]
    assert torch.equal(d[1][0], from_uint8(load_image(path / "b" / "c.jpg", 16)))
    assert d.summary() == open_dataset(path, size=16, cache_bytes=0).summary()


def test_text_files_in_splits_f4(tmp_path):
    files = ("train/a.png", "test/b.png")
    path = texts(tmp_path, files, train__a="one", test__b="two")
    assert open_dataset(path, size=16, split="test").captions == [("two",)]
    assert "choose from" in refusal(open_dataset, path, size=16, split="tset")


@pytest.mark.parametrize(
    "captions, options, says",
    [
        ({"a": "one"}, {}, "1 of 2 images have no caption, the first is 'b.png'"),
        ({"a": "one", "b": " \n"}, {}, "b.txt': the caption is empty"),
        ({"a": "one", "b": "x" * 30}, {"max_caption": 9}, "b.txt': the caption has 30"),
        ({"a": "one", "b": "two"}, {"text_column": "words"}, "leave out text_column"),
        ({}, {}, "or put a .txt file beside each image"),
    ],
)
def test_text_files_that_are_of_no_use_f4(captions, options, says, tmp_path):
    path = texts(tmp_path, ("a.png", "b.png"), **captions)
    m = refusal(open_dataset, path, size=16, **options)
    assert says in m and "pictures" in m


def test_a_text_file_that_is_not_utf8_f4(tmp_path):
    path = texts(tmp_path, ("a.png",))
    (path / "a.txt").write_bytes(b"one\n\xff")
    m = refusal(open_dataset, path, size=16)
    assert "a.txt', line 2: it is not UTF-8" in m and m.count("a.txt") == 1


def test_text_files_without_an_image_or_beside_metadata_are_noted_f4(tmp_path):
    path = texts(tmp_path, ("a.png",), a="one", readme="about")
    with pytest.warns(UserWarning, match="1 .txt files have no image .*'readme.txt'"):
        assert open_dataset(path, size=16).captions == [("one",)]
    (path / "metadata.jsonl").write_text(json.dumps(record()))
    with pytest.warns(
        UserWarning, match="'metadata.jsonl', so the .txt files beside 1"
    ):
        assert open_dataset(path, size=16).captions == [(DRAGON,)]


@pytest.mark.parametrize(
    "others, says",
    [
        (0, "all 20 images of .* have the caption 'a photo of sks'.*write for each"),
        (2, "18 of the 20 images of .* have the caption"),
        (3, None),
    ],
)
@pytest.mark.filterwarnings("error:.*have the caption:UserWarning")
def test_one_caption_for_all_images_is_said_before_training_f4(others, says, tmp_path):
    files = [f"{i}.png" for i in range(20)]
    records = [
        record(f"dragon {i}" if i < others else "a photo of sks", f)
        for i, f in enumerate(files)
    ]
    path = folder(tmp_path, *records, files=files)
    with pytest.warns(UserWarning, match=says) if says else _nothing():
        assert len(open_dataset(path, size=16)) == 20


# ---- files that get lost or damaged (F9)


def test_all_files_are_decoded_at_the_start_even_if_they_are_not_kept_f9(tmp_path):
    "A header that is sound and pixels that are not: found at once."
    path = folder(tmp_path, record(), record("x", "b.png"), files=("a.png", "b.png"))
    whole = (path / "b.png").read_bytes()
    (path / "b.png").write_bytes(whole[:60])
    m = refusal(ImageTextDataset.from_folder, path, size=16, cache_bytes=0)
    assert "b.png" in m and "damaged" in m
    options = dict(size=16, cache_bytes=0, check=False)
    assert len(ImageTextDataset.from_folder(path, **options)) == 2


def test_a_lost_file_is_replaced_by_the_next_and_noted_once_f9(eleven, tmp_path):
    "The batch stays as large, image and caption together, and it repeats to the bit."
    path = shutil.copytree(eleven, tmp_path / "copy")
    options = dict(size=32, cache_bytes=0)
    d, again = (ImageTextDataset.from_folder(path, **options) for _ in range(2))
    before = list(d.batches(4, seed=3, flip=True))
    (path / "2.png").unlink()
    (path / "3.png").write_bytes(b"")
    (path / "10.png").write_bytes((path / "10.png").read_bytes()[:50])
    with pytest.warns(UserWarning) as notes:
        after = list(d.batches(4, seed=3, flip=True))
        list(d.batches(4, seed=3, epoch=1))
    said = [str(n.message) for n in notes]
    assert len(said) == 3 and all(
        sum(f"{k}.png" in s for s in said) for k in (2, 3, 10)
    )
    assert "skipped, another image takes its place: 3 of at most 10" in said[-1]
    assert "\n" not in "".join(said) and sorted(d.skipped) == [2, 3, 10]
    stands_in = {2: 4, 3: 4, 10: 0}
    for old, new in zip(before, after):
        assert len(old) == len(new)
        for i, j, x, t in zip(
            old.indices.tolist(), new.indices.tolist(), new.images, new.captions
        ):
            assert j == stands_in.get(i, i) and f"dragon {j}" in t
            assert torch.equal(x, d[j][0]) or torch.equal(x, d[j][0].flip(-1))
    with pytest.warns(UserWarning, match="another image takes its place"):
        resumed = list(again.batches(4, seed=3, flip=True, start=1))
    assert same(resumed, after[1:])


def test_more_lost_files_than_stated_end_a_training_f9(eleven, tmp_path):
    path = shutil.copytree(eleven, tmp_path / "copy")
    d = ImageTextDataset.from_folder(path, size=32, cache_bytes=0, max_skipped=2)
    for i in (4, 5, 6):
        (path / f"{i}.png").unlink()
    with pytest.warns(UserWarning) as notes:
        m = refusal(lambda: list(d.batches(4, shuffle=False)))
    assert ["of at most 2" in str(n.message) for n in notes] == [True, True]
    assert "3 images can no longer be read, more than the 2" in m and "6.png" in m
    for i in range(11):
        (path / f"{i}.png").unlink(missing_ok=True)
    d = ImageTextDataset.from_folder(eleven, size=32, cache_bytes=0, max_skipped=99)
    d.read = lambda i: load_image(path / f"{i}.png", 32)
    with pytest.warns(UserWarning):
        m = refusal(lambda: list(d.batches(4)))
    assert "no image can be read any more" in m and ".png" in m


def test_a_damaged_row_of_a_stream_is_replaced_within_its_batch_f9():
    "So what comes after it does not move, and a training can be resumed behind it."

    def cell(i):
        b = io.BytesIO()
        make_image(20 + i, 30).save(b, "png")
        return {"bytes": b.getvalue() if i not in (1, 5) else b"no image", "path": None}

    rows = [{"image": cell(i), "text": f"dragon {i}"} for i in range(8)]
    rows[6]["text"] = ""
    d = StreamingImageTextDataset(rows, "image", ["text"], 16)
    with pytest.warns(UserWarning, match="another image takes its place"):
        whole = list(d.batches(3, shuffle=False))
    assert [b.indices.tolist() for b in whole] == [[0, 2, 2], [3, 4, 3], [7, 7]]
    assert whole[1].captions == ["dragon 3", "dragon 4", "dragon 3"]
    assert same(d.batches(3, shuffle=False, start=1), whole[1:])
    strict = StreamingImageTextDataset(rows, "image", ["text"], 16, max_skipped=1)
    with pytest.warns(UserWarning):
        m = refusal(lambda: list(strict.batches(3, shuffle=False)))
    assert "2 images can no longer be read, more than the 1" in m
    assert "row 1" in refusal(lambda: list(strict.batches(1, shuffle=False)))


# ---- what the system does not let us read (F11)


def test_an_unreadable_metadata_file_is_one_line_f11(tmp_path):
    path = folder(tmp_path, metadata=None)
    (path / "metadata.jsonl").mkdir()
    m = refusal(open_dataset, path, size=16)
    assert "metadata.jsonl' cannot be read (Is a directory); check" in m


@pytest.mark.parametrize(
    "method, file, says",
    [
        ("read_bytes", "metadata.jsonl", "metadata.jsonl' cannot be read"),
        ("iterdir", "pictures", "pictures' cannot be read"),
        ("is_dir", "pictures", "pictures' cannot be read"),
        ("exists", "pictures", "pictures' cannot be read"),
        ("glob", "pictures", "pictures' cannot be read"),
        ("rglob", "pictures", "pictures' cannot be read"),
        ("is_file", "a.png", "a.png' cannot be read"),
    ],
)
def test_no_permission_is_one_line_f11(method, file, says, tmp_path, monkeypatch):
    "Wherever the system refuses first; the tests' user may read everything."
    path, original = folder(tmp_path, record()), getattr(Path, method)

    def refuse(self, *args, **kwargs):
        if self.name == file:
            raise PermissionError(13, "Permission denied", str(self))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Path, method, refuse)
    m = refusal(open_dataset, path, size=16)
    assert says in m and "(Permission denied); check" in m


def test_an_unreadable_image_is_not_called_damaged_f11(tmp_path, monkeypatch):
    path, original = folder(tmp_path, record()), os.path.getsize

    def refuse(file):
        if str(file).endswith("a.png"):
            raise PermissionError(13, "Permission denied", str(file))
        return original(file)

    monkeypatch.setattr(os.path, "getsize", refuse)
    for m in (
        refusal(open_dataset, path, size=16),
        refusal(load_image, path / "a.png", 16),
    ):
        assert "a.png': it cannot be read (Permission denied)" in m
        assert "damaged" not in m
    (path / "b.png").mkdir()
    assert "Is a directory" in refusal(load_image, path / "b.png", 16)


@pytest.mark.parametrize("source", ["x" * 300, "~no-such-user/pictures", "./a\0b"])
def test_names_that_the_system_does_not_take_f11(source):
    refusal(open_dataset, source)


# ---- paths and tables that others write (small)


@pytest.mark.parametrize(
    "listed, there",
    [
        ("{folder}/a.png", "a.png"),
        ("sub/../a.png", "a.png"),
        ("./a.png", "a.png"),
        ("a:b.png", "a:b.png"),
        ("sub\\b.png", "sub/b.png"),
        ("sub\\b.png", "sub\\b.png"),
        ("\u00fc/\u00e9.png", "u\u0308/e\u0301.png"),
        ("u\u0308/e\u0301.png", "\u00fc/\u00e9.png"),
        ("\u00fc/\u00e9.png", "\u00fc/e\u0301.png"),
        ("..a.png", "..a.png"),
    ],
)
@pytest.mark.filterwarnings("error::UserWarning")
def test_paths_within_the_folder_are_found_however_they_are_written(
    listed, there, tmp_path
):
    path = folder(tmp_path, files=(there,), metadata=None)
    listed = listed.format(folder=path)
    (path / "metadata.jsonl").write_text(json.dumps(record(file=listed)))
    d = ImageTextDataset.from_folder(path, size=16)
    assert d.captions == [(DRAGON,)]
    assert torch.equal(d.cache[0], load_image(path / there, 16))


def test_two_spellings_of_one_file_are_one_image_with_two_captions(tmp_path):
    path = folder(tmp_path, record(), record("another", "sub/../a.png"))
    assert ImageTextDataset.from_folder(path, size=16).captions == [(DRAGON, "another")]


@pytest.mark.parametrize(
    "listed, says",
    [
        ("a\0.png", "embedded null"),
        ("a" * 300 + ".png", "File name too long"),
        ("loop.png", "'loop.png'"),  # a link to itself: Python 3.13 says missing
        ("../pictures-2/a.png", "leaves the folder"),
        ("sub\\..\\..\\a.png", "leaves the folder"),
    ],
)
def test_paths_that_cannot_be_are_one_line(listed, says, tmp_path):
    path = folder(tmp_path, record(file=listed))
    (path / "loop.png").symlink_to("loop.png")
    m = refusal(ImageTextDataset.from_folder, path, size=16)
    assert "metadata.jsonl', line 1:" in m and says in m


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_csv_with_semicolons_or_tabs(delimiter, tmp_path):
    lines = [
        ["file_name", "text"],
        ["a.png", "red, and big"],
        ["b.png", f'"null{delimiter}12"'],
    ]
    text = "\ufeff" + "\r\n".join(map(delimiter.join, lines))
    path = folder(
        tmp_path, text=text, files=("a.png", "b.png"), metadata="metadata.csv"
    )
    d = ImageTextDataset.from_folder(path, size=16)
    assert d.captions == [("red, and big",), (" ".join(f"null{delimiter}12".split()),)]


@pytest.mark.parametrize(
    "text, line, says",
    [
        (
            "file_name;text\na.png;red; big\n",
            2,
            "put a caption with semicolons in quotes",
        ),
        ("file_name\ttext\na.png\tred\tbig\n", 2, "put a caption with tabs in quotes"),
        ("file_name|text\na.png|red\n", 1, "no file_name in the heading"),
        ("a.png,red\n", 1, "write a heading file_name,text"),
    ],
)
def test_a_csv_that_cannot_be_read_is_not_told_to_be_json(text, line, says, tmp_path):
    path = folder(tmp_path, text=text, metadata="metadata.csv")
    m = refusal(ImageTextDataset.from_folder, path, size=16)
    assert f"line {line}:" in m and says in m and "{" not in m


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_in_place_of_the_metadata_is_refused(tmp_path):
    "Reading it would never end."
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "metadata.jsonl")
    assert "is a pipe or a device" in refusal(open_dataset, tmp_path, 16)


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_looking_at_all_files_has_a_bar_f9(eleven, monkeypatch, cache_bytes):
    shown = []

    def bar(items, description="", total=None):
        shown.append((description, total or len(items)))
        return items

    monkeypatch.setattr("t2i_tutorial.data.progress_bar", bar)
    ImageTextDataset.from_folder(eleven, size=16, cache_bytes=cache_bytes)
    assert len(shown) == 2 and all(n == 11 for _, n in shown)


def test_a_subset_reads_and_describes_its_own_images(tmp_path):
    "In memory or from files; the same images and captions give the same digest."
    for i in range(6):
        Image.new("RGB", (20, 20), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"wall {i}")
    for cache_bytes in (2**20, 0):
        data = ImageTextDataset.from_folder(tmp_path, 16, cache_bytes=cache_bytes)
        part = data.subset([4, 1])
        assert part.captions == [("wall 4",), ("wall 1",)]
        assert torch.equal(
            part.pixels(torch.tensor([0]))[0], data.pixels(torch.tensor([4]))[0]
        )
        assert (part.cache is None) == (data.cache is None)
        assert part.summary()["images"] == 2
        assert part.fingerprint() == data.subset([4, 1]).fingerprint()
        assert part.fingerprint() != data.subset([4, 2]).fingerprint()
    critters_part = ImageTextDataset.from_critters(8, 16).subset([3, 5])
    batch = next(critters_part.batches(2, shuffle=False, flip=True))
    assert len(batch.attributes["facing"]) == 2
