"""Chapter 1: pictures, looking, seeds, saving."""

import errno
import io
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from t2i_tutorial import core
from t2i_tutorial.core import UserError, set_value_style


def test_every_byte_survives_the_round_trip():
    levels = torch.arange(256, dtype=torch.uint8).expand(3, 2, 256)
    assert torch.equal(core.to_uint8(core.from_uint8(levels)), levels)


@settings(max_examples=30, deadline=None)
@given(st.floats(-5, 5), st.integers(1, 4))
def test_to_uint8_is_within_half_a_level_and_clamps(value, batch):
    u = core.to_uint8(torch.full((batch, 3, 2, 2), value))
    exact = (min(1, max(-1, value)) + 1) * 127.5
    assert (u.float() - exact).abs().max() <= 0.5 + 1e-4


def test_nan_is_refused():
    with pytest.raises(UserError, match="NaN"):
        core.to_uint8(torch.full((3, 2, 2), float("nan")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_becomes_background(mode):
    picture = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode)
    assert (core.from_pil(picture) == 1).all()
    assert core.from_pil(picture, background=(0, 0, 255))[:, 0, 0].tolist() == [
        -1,
        -1,
        1,
    ]


def test_half_transparent_is_mixed():
    picture = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert core.to_uint8(core.from_pil(picture))[0, 0, 0].item() == pytest.approx(
        127, abs=1
    )


def test_palette_with_transparency():
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 0, 0])
    picture.putpixel((1, 0), 1)
    picture.info["transparency"] = 0
    assert core.to_uint8(core.from_pil(picture))[:, 0, 0].tolist() == [255, 255, 255]
    assert core.to_uint8(core.from_pil(picture))[:, 0, 1].tolist() == [200, 0, 0]


def test_to_pil_enlarges_without_blur():
    image = torch.rand(3, 4, 5) * 2 - 1
    big = np.array(core.to_pil(image, enlarge=3))
    assert (
        big.shape == (12, 15, 3)
        and (big[::3, ::3] == np.array(core.to_pil(image))).all()
    )
    assert (big[1::3, 2::3] == big[::3, ::3]).all()


@pytest.mark.parametrize("kind", [{}, {"bbox_inches": "tight"}, {"dpi": 200}])
def test_show_images_pixels_are_sharp_squares(kind):
    """No colour occurs in the drawn figure that is not in the pictures, as saved or as
    a notebook shows it.
    """
    images = torch.tensor([-1.0, 1.0])[
        torch.randint(0, 2, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    ]
    figure = core.show_images(images, scale=5)
    buffer = io.BytesIO()
    figure.savefig(buffer, facecolor="white", **kind)
    drawn = np.asarray(Image.open(buffer))[..., :3]
    assert set(np.unique(drawn)) == {0, 255}


def test_show_images_wraps_captions_and_counts():
    images = torch.zeros(3, 3, 16, 16)
    figure = core.show_images(
        images, ["a very long caption that has to be wrapped below its picture"] * 3
    )
    assert len(figure.texts) == 3 and all(
        "\n" in text.get_text() for text in figure.texts
    )
    with pytest.raises(UserError, match="3 images but 2 captions"):
        core.show_images(images, ["a", "b"])
    with pytest.raises(UserError, match="no images"):
        core.show_images([])


def test_show_images_gives_each_row_the_height_of_its_own_captions():
    images = torch.zeros(4, 3, 16, 16)
    one_row = core.show_images(images[:2], scale=4).get_figheight()
    plain = core.show_images(images, columns=2, scale=4).get_figheight()
    long = "a very long caption that has to be wrapped below its picture"
    last = core.show_images(images, ["", "", long, long], columns=2, scale=4)
    both = core.show_images(images, [long] * 4, columns=2, scale=4)
    assert plain == pytest.approx(2 * one_row)
    below = last.get_figheight() - plain
    assert below > 0.5 and both.get_figheight() == pytest.approx(plain + 2 * below)
    text = last.texts[0]  # just below its image, the first of the second row
    assert text.get_position()[1] == pytest.approx(
        below / last.get_figheight(), abs=0.1
    )


@pytest.mark.parametrize(
    "text",
    [
        "a  red cat,  sleeping",
        "a red\u00a0cat,\nsleeping\t",
        "\ufeffa red cat,\u2028sleeping",
        "\u202aa\u3000red\u200b cat,\x00sleeping\u202c",
        "a r\u00aded c\u2060at, sleep\u200ding\u200c",
        "a red \u200d cat, \x85sleeping",
    ],
)
def test_a_text_is_the_same_however_it_is_spaced(text):
    "Row F1."
    assert core.clean_text(text) == "a red cat, sleeping"


@pytest.mark.parametrize(
    "text",
    [
        "a red cat , sleeping,, or not,perhaps",  # spelling, not spacing
        "\U0001f469\u200d\U0001f680 \u2764\ufe0f",  # an emoji of two, a red heart
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian
        "\u0915\u094d\u200d\u0937 \u0d28\u0d4d\u200d",  # Devanagari, Malayalam
        "caf\u00e9 \u8d64\u3044\u7adc $_$",
        "",
    ],
)
def test_what_belongs_to_the_words_stays(text):
    "Row F1: punctuation, and joiners where they shape what is read."
    assert core.clean_text(text) == text


@settings(max_examples=100, deadline=None)
@given(
    st.text(
        st.sampled_from(
            "ae\u0301\u0323\u0915\u200b\u200c\u200d\u00ad\ufeff\u2126\u3000\n \x1f\x85"
        )
    )
    | st.text()
)
def test_a_clean_text_is_clean(text):
    "Row F1: cleaning twice changes nothing, and no odd white space is left."
    clean = core.clean_text(text)
    assert core.clean_text(clean) == clean
    assert " ".join(clean.split()) == clean
    assert not {*clean} & {*"\ufeff\u200b\u00ad\u2060\x00\x7f"}


def drawn(*captions, size=16, **options):
    "The figure of black images with captions, after it was really drawn."
    figure = core.show_images(torch.zeros(len(captions), 3, size, size) - 1, captions)
    figure.savefig(io.BytesIO(), **options)
    return figure


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_words_are_never_mathematics(kind):
    "Row F2: `$$` ended a training; a price lost its dollar signs."
    words = ["$$", "$_$", "for $5 or $6", r"\$a^2$ \frac", "{}^%&#_ <b>"]
    figure = drawn(*words, size=96, format=kind)
    assert [t.get_text() for t in figure.texts] == words
    titled = core.show_images(torch.zeros(1, 3, 16, 16), title="$_$ and $$")
    titled.savefig(io.BytesIO(), format=kind)
    assert titled.texts[0].get_text() == "$_$ and $$"
    plain = core.show_images(torch.zeros(1, 3, 96, 96), ["a$b$c"]).texts[0]
    assert not plain.get_parse_math() and not plain.get_usetex()


def test_characters_without_a_glyph_are_noted_once(recwarn):
    "Row F2: boxes, one note for all of them and none the second time."
    core._warn_no_glyph.cache_clear()
    red_cat = "\u4e00\u53ea\u7ea2\u8272\u7684\u732b"
    for _ in range(2):
        figure = drawn(f"cat {red_cat}", "a \U0001f469\u200d\U0001f680 \x00\udcff")
    (note,) = recwarn
    assert "lacks 9 characters" in str(note.message) and "\n" not in str(note.message)
    assert [t.get_text().count("\u25a1") for t in figure.texts] == [6, 3]


def test_a_font_that_is_asked_for_draws_what_the_first_one_lacks(recwarn):
    "Row F2: as matplotlib falls back from one family to the next."
    import matplotlib as mpl

    sign = "\u2a3f"  # in STIX, not in Courier-like cmtt10
    with mpl.rc_context({"font.family": ["cmtt10"]}):
        assert core._drawable([f"a {sign}"]) == ["a \u25a1"]
    with mpl.rc_context({"font.family": ["cmtt10", "STIXGeneral"]}):
        assert core._drawable([f"a {sign}"]) == [f"a {sign}"]


@pytest.mark.parametrize("text", ["very " * 300, "x" * 1500, "\u7adc" * 1500])
def test_a_long_caption_is_cut_in_the_drawing(text, recwarn):
    "Row F2: 1,500 characters below each image would make a grid too tall to draw."
    figure = drawn(text, text)
    lines = figure.texts[0].get_text().split("\n")
    assert len(lines) == 20 and lines[-1].endswith("…")
    assert figure.get_size_inches()[1] < 4
    titled = core.show_images(torch.zeros(1, 3, 16, 16), title=text)
    titled.savefig(io.BytesIO())
    assert len(titled.texts[0].get_text()) <= 200


def test_make_grid_places_every_image():
    images = torch.stack([torch.full((3, 2, 2), v) for v in (-1.0, 0.0, 0.5)])
    grid = core.make_grid(images, columns=2, padding=1)
    assert grid.shape == (3, 7, 7)
    assert (
        grid[0, 1, 1] == -1
        and grid[0, 1, 4] == 0
        and grid[0, 4, 1] == 0.5
        and grid[0, 4, 4] == 1
        and grid[0, 0, 0] == 1
    )


def test_explore_links_every_stack():
    frames = torch.zeros(6, 3, 16, 16)
    box = core.slider_grid(frames, {"a": ["1", "2"], "b": ["x", "y", "z"]}, width=32)
    outer, a, b = box.children
    assert len(outer.children) == 2 and all(
        len(inner.children) == 3 for inner in outer.children
    )
    assert a.options == ("1", "2") and b.options == ("x", "y", "z")
    longer = core.slider_grid(frames[:1], {"guidance scale": ["1"]}).children[1]
    assert longer.style.description_width == "16ch" != a.style.description_width
    with pytest.raises(UserError, match="6 frames for 2 x 2"):
        core.slider_grid(frames, {"a": ["1", "2"], "b": ["x", "y"]})


def test_seed_everything_seeds_all_three():
    def draw():
        return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()

    core.seed_everything(7)
    first = draw()
    core.seed_everything(7)
    assert draw() == first
    core.seed_everything(8)
    assert draw() != first


@pytest.mark.parametrize("seed", [-1, 2**32, True, 1.5, "3"])
def test_bad_seed(seed, untyped):
    with pytest.raises(UserError, match="seed must be a whole number"):
        core.seed_everything(seed)


def test_streams_are_independent_and_stable_across_processes():
    code = (
        "import torch; from t2i_tutorial.core import seeded_generator as g; "
        "print(torch.rand(2, generator=g(3, 'a', 1)).tolist())"
    )
    here = torch.rand(2, generator=core.seeded_generator(3, "a", 1)).tolist()
    assert subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip() == str(here)
    seeds = {
        core.seeded_generator(*k).initial_seed()
        for k in [(3, "a", 1), (3, "a1"), (3, "a", 2), (4, "a", 1), (3,)]
    }
    assert len(seeds) == 5


@pytest.mark.parametrize("size", [0, 15, 513, 1000, -32, "64", 32.5, True, None])
def test_bad_size(size, untyped):
    with pytest.raises(UserError) as e:
        core.check_image_size(size)
    assert (
        repr(size) in str(e.value)
        and "from 16 to 512" in str(e.value)
        and "\n" not in str(e.value)
    )


def test_choice_names_the_nearest():
    assert core.check_choice("species", "owl", ["owl", "cat"]) == "owl"
    with pytest.raises(
        UserError, match="unknown species 'dragn'; did you mean 'dragon'"
    ):
        core.check_choice("species", "dragn", ["dragon", "owl"])
    with pytest.raises(UserError, match="choose from: dragon, owl"):
        core.check_choice("species", "zzz", ["dragon", "owl"])


def test_device_that_is_not_there():
    assert core.get_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="unknown device 'tpu'"):
        core.get_device("tpu")


def test_atomic_write_keeps_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"good")
    with pytest.raises(RuntimeError):
        with core.atomic_write(path) as partial:
            partial.write_bytes(b"ha")
            raise RuntimeError
    assert path.read_bytes() == b"good" and [p.name for p in tmp_path.iterdir()] == [
        "a.bin"
    ]


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        UserError,
        match="cannot write .*w.safetensors.*No space left on device; free some space",
    ):
        core.save_tensors(tmp_path / "w.safetensors", {"a": torch.ones(3)})
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_really_fails_half_way_leaves_nothing(tmp_path):
    "The system stops the write after 1,000 bytes, as a full disk would."
    code = (
        "import resource, sys, torch; from t2i_tutorial import core\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: core.save_tensors(sys.argv[1], {'a': torch.ones(1000)})\n"
        "except core.UserError as e: print(e)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "w.safetensors")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (
        "cannot write" in done.stdout
        and "File too large" in done.stdout
        and list(tmp_path.iterdir()) == []
    )


def test_read_only_target_is_reported(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        UserError, match="cannot write .*; free some space or choose another place"
    ):
        core.save_json(
            tmp_path / "file" / "below.json", {}
        )  # a file stands where a folder would have to be


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder_is_reported(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        core.save_json(tmp_path / "a.json", {})
    tmp_path.chmod(0o700)


def test_saved_files_obey_the_umask(tmp_path):
    """A temporary file is often made readable by its owner only.

    The finished one must not stay so.
    """
    path = core.save_json(tmp_path / "a.json", {"a": 1})
    (tmp_path / "b").write_text("")
    assert path.stat().st_mode == (tmp_path / "b").stat().st_mode


def test_tensors_and_config_come_back_together(tmp_path):
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.randn(4, 4).T}
    core.save_tensors(tmp_path / "m.safetensors", tensors, {"dim": 8, "name": "größe"})
    back, config = core.load_tensors(tmp_path / "m.safetensors")
    assert config == {"dim": 8, "name": "größe"} and all(
        torch.equal(back[k], v) for k, v in tensors.items()
    )


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no such file"),
        (b"", "no whole safetensors file"),
        (b"\x80\x04pickle", "no whole safetensors file"),
    ],
)
def test_bad_tensor_files(tmp_path, content, message):
    path = tmp_path / "m.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        core.load_tensors(path)


def test_weights_that_may_not_be_read_are_not_called_damaged(tmp_path, monkeypatch):
    path = core.save_tensors(tmp_path / "w.safetensors", {"a": torch.ones(2)})

    def refuse(name, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(name))

    monkeypatch.setattr("builtins.open", refuse)  # root may read whatever there is
    with pytest.raises(UserError, match="cannot read .*: Permission denied") as e:
        core.load_tensors(path)
    monkeypatch.undo()
    assert "\n" not in str(e.value) and "safetensors file" not in str(e.value)


@pytest.mark.parametrize(
    "text, message", [('{"a": 1,\n oops}', "line 2"), (None, "cannot read")]
)
def test_bad_json_files(tmp_path, text, message):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=message):
        core.load_json(tmp_path / "a.json")


def test_json_refuses_what_others_cannot_read(tmp_path):
    with pytest.raises(UserError, match="cannot save"):
        core.save_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not (tmp_path / "a.json").exists()
    core.save_json(tmp_path / "a.json", {"é": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"é": [1, None]}


def test_rows_become_a_table():
    table = core.show_table(
        [{"a": 1, "b|c": 0.123456}, {"a": "x|y", "b|c": 1234.5}]
    ).data.split("\n")
    assert (
        table[1:] == ["| --- | --- |", "| 1 | 0.123 |", "| x&#124;y | 1,234 |"]
        and table[0] == "| a | b&#124;c |"
    )
    table = core.show_table([{"price": "$5 or $6\na night"}]).data
    assert table.endswith("\n| &#36;5 or &#36;6 a night |")  # row F2
    with pytest.raises(UserError, match="no rows to show"):
        core.show_table([])
    with pytest.raises(UserError, match="other columns"):
        core.show_table([{"a": 1}, {"b": 1}])


@pytest.mark.parametrize(
    ("message", "expected"),
    (
        ("two\nlines and\ta tab", "two lines and a tab"),
        ("an escape \x1b and half a character \ud800", r"an escape \x1b and half"),
        ("x" * 100_000 + "; shorten it", "; shorten it"),
    ),
)
def test_a_message_is_one_line_of_a_sensible_length(message, expected):
    said = str(UserError(message))
    assert expected in said and len(said) <= 600
    said.encode()  # can be printed


# ---- what a cell returns


@pytest.fixture
def shown(monkeypatch):
    "What a notebook shows for a value: Markdown if there is any, else text."
    import IPython
    from IPython.core.formatters import DisplayFormatter

    class Shell:
        display_formatter = DisplayFormatter()

    monkeypatch.setattr(IPython, "get_ipython", Shell)
    set_value_style()

    def show(value) -> str:
        data, _ = Shell.display_formatter.format(value)
        return data.get("text/markdown") or data["text/plain"]

    return show


@pytest.mark.parametrize(
    "value, text",
    [
        (0.0573350079, "0.05734"),
        (4.775725327083383e-07, "4.776e-07"),
        (123456.789, "123,457"),
        (float("nan"), "nan"),
        ((0.0573350079, 0.25), "0.05734   0.25"),
        ([True, False], "True   False"),
        ({(4, 2)}, "4, 2"),
        ([], "none"),
        ((4, []), "4\nnone"),
        (["a red cat asleep on a mat"] * 2, "a red cat asleep on a mat\n" * 2),
        ([torch.tensor(0.25), np.float32(0.5)], "0.25   0.5"),
        ((torch.Size([2, 3]), torch.Size([])), "2 × 3   none"),
        (torch.Size([2, 3]), "torch.Size([2, 3])"),
        (torch.tensor([1.5]), "tensor([1.5000])"),
        ((torch.tensor([1.5]), 2), "tensor([1.5000])   2"),
        ({}, "{}"),
        ("a text", "'a text'"),
        ({"a": 1 / 3, "b": (1, 2)}, "| a | b |\n| --- | --- |\n| 0.3333 | 1, 2 |"),
        (
            {"p": {"x": 1, "y": 2}, "q": {"x": 0.5, "y": None}},
            "|  | x | y |\n| --- | --- | --- |\n| p | 1 | 2 |\n| q | 0.5 | None |",
        ),
        ({"a|b": "$5", "__c__": "d\ne"}, None),
    ],
)
def test_a_value_is_shown_rounded(shown, value, text):
    got = shown(value)
    if text is None:
        text = "| a&#124;b | &#95;&#95;c&#95;&#95; |\n| --- | --- |\n| &#36;5 | d e |"
    assert got.strip() == text.strip()


def test_a_long_mapping_has_a_row_for_each_name(shown):
    lines = shown({f"a rather long name, {i}": i / 3 for i in range(9)}).splitlines()
    assert lines[:2] == ["|  |   |", "| --- | --- |"] and len(lines) == 11
    assert lines[3] == "| a rather long name, 1 | 0.3333 |"


def test_the_value_style_is_for_notebooks_alone(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    set_value_style()
    assert "IPython" not in sys.modules
