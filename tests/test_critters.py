"""Chapter 3: creatures drawn by code, their captions, their splits."""

import hashlib
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t2i_tutorial import critters
from t2i_tutorial.core import UserError, seeded_generator
from t2i_tutorial.critters import (
    ACTIONS,
    ATTRIBUTES,
    COLOURS,
    EYE_COLOURS,
    FACINGS,
    HELD_OUT,
    HELD_OUT_KEYS,
    HELD_OUT_PAIRS,
    SIZES,
    SPECIES,
    SPLITS,
    VOCABULARY,
    Critter,
    colour_histogram,
    parse_caption,
    render,
    render_logo,
    render_logo_rgba,
    sample_attributes,
    sample_critters,
    write_caption,
)
from t2i_tutorial.shapes import (
    Coordinates,
    pixel_grid,
    sdf_box,
    sdf_capsule,
    sdf_circle,
    sdf_difference,
    sdf_ellipse,
    sdf_intersection,
    sdf_polygon,
    sdf_smooth_union,
    sdf_to_alpha,
    sdf_union,
)


@st.composite
def any_critter(pick):
    "Every creature that may exist."
    body, second = pick(st.permutations(list(COLOURS)))[:2]
    action = pick(st.sampled_from(ACTIONS))
    eyes = None if action == "sleeping" else pick(st.sampled_from(list(EYE_COLOURS)))
    return Critter(
        pick(st.sampled_from(SPECIES)),
        body,
        second,
        eyes,
        action,
        pick(st.sampled_from(SIZES)),
        pick(st.sampled_from(FACINGS)),
    )


def digest(batch) -> str:
    return hashlib.sha256(
        batch.images.numpy().tobytes() + "\n".join(batch.captions).encode()
    ).hexdigest()


# ---- shapes


def dots(*corners, n=4001):
    t = torch.linspace(0, 1, n, dtype=torch.float64)[:, None]
    return torch.cat(
        [
            torch.tensor(a) * (1 - t) + torch.tensor(b) * t
            for a, b in zip(corners, corners[1:])
        ]
    )


def grid(n=20):
    p = pixel_grid(n)
    q = Coordinates(*[c.double() for c in torch.broadcast_tensors(p.x, p.y)])
    return q, torch.stack([q.x.flatten(), q.y.flatten()], 1)


def test_pixel_centres_mirror_exactly():
    for size in (16, 17, 33, 100, 512):
        x = pixel_grid(size).x.flatten()
        assert len(x) == size and torch.equal(x, -x.flip(0)) and x.abs().max() < 1


def test_exact_shapes_agree_with_a_search_over_their_edge():
    q, points = grid()

    def nearest(line):
        return torch.cdist(points, line).min(1).values.view_as(q.x)

    angle = torch.linspace(0, 2 * math.pi, 8001, dtype=torch.float64)
    ring = torch.stack([0.1 + 0.6 * angle.cos(), 0.2 + 0.6 * angle.sin()], 1)
    corners = [(0.5, 0.3), (-0.5, 0.3), (-0.5, -0.3), (0.5, -0.3), (0.5, 0.3)]
    assert (nearest(ring) - sdf_circle(q, (0.1, 0.2), 0.6).abs()).abs().max() < 1e-4
    assert (
        nearest(dots((-0.4, 0.1), (0.6, -0.7)))
        - 0.15
        - sdf_capsule(q, (-0.4, 0.1), (0.6, -0.7), 0.15)
    ).abs().max() < 1e-4
    assert (
        nearest(dots(*corners)) - sdf_box(q, (0, 0), (0.5, 0.3)).abs()
    ).abs().max() < 1e-4


def test_approximate_shapes_are_right_at_the_edge_and_have_the_right_sign():
    q, _ = grid(64)
    inside = (q.x / 0.8) ** 2 + (q.y / 0.3) ** 2 < 1
    assert torch.equal(sdf_ellipse(q, (0, 0), (0.8, 0.3)) < 0, inside)
    angle = torch.linspace(0, 2 * math.pi, 100, dtype=torch.float64)
    edge = Coordinates(0.8 * angle.cos()[None, None], 0.3 * angle.sin()[None, None])
    assert sdf_ellipse(edge, (0, 0), (0.8, 0.3)).abs().max() < 1e-6
    assert (
        sdf_ellipse(q, (0.1, 0), (0.5, 0.5)) - sdf_circle(q, (0.1, 0), 0.5)
    ).abs().max() < 1e-3  # with equal radii it is a circle
    square = sdf_polygon(q, (-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))
    assert torch.equal(square < 0, (q.x.abs() < 0.5) & (q.y.abs() < 0.5))


@pytest.mark.parametrize("size", [16, 32, 64])
def test_coverage_adds_up_to_the_area(size):
    radii = torch.linspace(0.3, 0.9, 20)
    painted = (
        sdf_to_alpha(
            sdf_circle(pixel_grid(size), (0.03, -0.01), radii[:, None, None]), 2 / size
        ).sum((1, 2))
        * (2 / size) ** 2
    )
    assert ((painted / (math.pi * radii**2)) - 1).abs().max() < 0.02


def test_joining_shapes_follows_logic():
    q, _ = grid(32)
    a, b = sdf_circle(q, (-0.2, 0), 0.5), sdf_circle(q, (0.3, 0.1), 0.4)
    assert torch.equal(sdf_union(a, b) < 0, (a < 0) | (b < 0))
    assert torch.equal(sdf_intersection(a, b) < 0, (a < 0) & (b < 0))
    assert torch.equal(sdf_difference(a, b) < 0, (a < 0) & (b > 0))
    soft = sdf_smooth_union(a, b, 0.3)
    assert (soft <= sdf_union(a, b)).all() and (
        sdf_union(a, b) - soft
    ).max() <= 0.3 / 4 + 1e-6


# ---- tables


def test_the_promised_variety_exists():
    assert (
        len(SPECIES) == 12
        and "dragon" in SPECIES
        and len(COLOURS) == 10
        and len(EYE_COLOURS) >= 5
        and len(ACTIONS) >= 6
    )
    assert (
        set(ATTRIBUTES)
        == {
            "species",
            "body_colour",
            "second_colour",
            "eye_colour",
            "action",
            "size",
            "facing",
        }
        and "closed" in ATTRIBUTES["eye_colour"]
    )


def test_colours_stay_apart_when_lit_and_shaded():
    tones = critters.COLOUR_TONES
    gaps = (
        torch.cdist(tones.flatten(0, 1), tones.flatten(0, 1))
        .view(10, tones.shape[1], 10, tones.shape[1])
        .amin((1, 3))
    )
    assert (
        gaps[~torch.eye(10, dtype=torch.bool)].min() > 2 * 0.05
    )  # further than twice the tolerance of the pixel vote


# ---- drawing


@settings(max_examples=40, deadline=None)
@given(any_critter(), st.integers(16, 80), st.integers(0, 2**31))
def test_every_critter_draws_in_range_on_white(critter, size, seed):
    image = render([critter], size, seed)
    assert image.shape == (1, 3, size, size) and image.dtype == torch.float32
    assert image.isfinite().all() and -1 <= image.min() and image.max() <= 1
    assert (image[0, :, 0, 0] == 1).all() or (
        image[0, :, 0, -1] == 1
    ).all()  # props reach into one upper corner at most
    assert (
        0.02 < (image[0].amin(0) < 0.5).float().mean() < 0.8
    )  # something is there, and it does not fill the picture


@pytest.mark.parametrize("size", [16, 17, 64, 255, 512])
def test_any_size_from_16_to_512(size):
    assert render([Critter("snail", "red", "blue")], size).shape == (1, 3, size, size)


def test_sizes_show_the_same_creature():
    small, large = (sample_critters(40, size, seed=3) for size in (32, 128))
    assert small.captions == large.captions and small.critters == large.critters
    shrunk = torch.nn.functional.avg_pool2d(large.images, 4)
    assert (
        shrunk - small.images
    ).abs().mean() < 0.05  # a wrong pose would give about 0.2
    assert (shrunk.roll(1, 0) - small.images).abs().mean() > 0.15


def test_same_seed_same_bytes_also_in_a_fresh_process():
    here = digest(sample_critters(96, 32, seed=5))
    assert (
        here
        == digest(sample_critters(96, 32, seed=5))
        != digest(sample_critters(96, 32, seed=6))
    )
    code = (
        "import hashlib, torch; torch.rand(7); from t2i_tutorial.critters import "
        "sample_critters; b = sample_critters(96, 32, seed=5);"
        "print(hashlib.sha256(b.images.numpy().tobytes() + "
        "'\\n'.join(b.captions).encode()).hexdigest())"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == here
    )


def test_a_picture_depends_only_on_its_critter_and_place():
    batch = sample_critters(700, 32, seed=2)  # more than one piece of a render
    again = render(batch.critters, 32, seed=9)
    for part in (batch.critters[:1], batch.critters[:37], batch.critters[:600]):
        assert torch.equal(render(part, 32, seed=9), again[: len(part)])
    assert (
        torch.equal(sample_critters(30, 32, seed=2).images, batch.images[:30])
        and sample_critters(30, 32, seed=2).captions == batch.captions[:30]
    )


def test_global_random_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    sample_critters(5, 16)
    assert torch.equal(before, torch.get_rng_state())


def test_facing_left_is_the_mirror_image():
    "But for the Zs of a sleeper, which stay readable."
    for action in ACTIONS:
        left, right = (
            render(
                [
                    Critter(s, "green", "pink", None, action, "small", f)
                    for s in SPECIES
                ],
                48,
            )
            for f in FACINGS
        )
        if action == "sleeping":
            assert 0 < (left != right.flip(-1)).float().mean() < 0.1
        else:
            assert torch.equal(left, right.flip(-1)), action


@pytest.mark.parametrize(
    "name",
    [
        "species",
        "body_colour",
        "second_colour",
        "eye_colour",
        "action",
        "size",
        "facing",
    ],
)
def test_every_attribute_can_be_seen(name):
    """Changing one attribute changes the picture at 32 pixels, for every species and by
    more than a pixel or two.
    """
    other = {
        "body_colour": "yellow",
        "second_colour": "yellow",
        "eye_colour": "blue",
        "action": "jumping",
        "size": "small",
        "facing": "left",
    }
    for i, species in enumerate(SPECIES):
        fixed = dict(
            species=species,
            body_colour="red",
            second_colour="green",
            eye_colour="red",
            action="standing",
            size="large",
            facing="right",
        )
        changed = {**fixed, name: SPECIES[i - 1] if name == "species" else other[name]}
        a, b = render([Critter(**fixed)], 32), render([Critter(**changed)], 32)
        assert ((a - b).abs().amax(1) > 0.3).sum() >= (
            4 if name == "eye_colour" else 20
        ), species


def test_irises_cover_four_pixels_at_32():
    full = 2 * max(abs(a - b) for a, b in zip(EYE_COLOURS["red"], EYE_COLOURS["blue"]))
    for size in SIZES:
        red, blue = (
            render(
                [Critter(s, "grey", "black", e, size=size) for s in SPECIES], 32, seed=4
            )
            for e in ("red", "blue")
        )
        iris = (red - blue).abs().amax(1) / full  # how much of each pixel is iris
        assert iris.amax((1, 2)).min() > 0.7 and iris.sum((1, 2)).min() > 4, (
            size,
            iris.sum((1, 2)),
        )


def test_actions_look_different_from_each_other():
    for species in SPECIES:
        images = render(
            [Critter(species, "blue", "orange", action=a) for a in ACTIONS], 32, seed=1
        )
        for i in range(len(ACTIONS)):
            for j in range(i):
                assert ((images[i] - images[j]).abs().amax(0) > 0.3).sum() > 40, (
                    species,
                    ACTIONS[i],
                    ACTIONS[j],
                )


@pytest.mark.parametrize("size", [32, 64])
def test_body_colour_wins_the_pixel_vote(size):
    batch = sample_critters(1200, size, seed=11)
    shares = colour_histogram(batch.images)
    right = shares.argmax(1) == batch.attributes["body_colour"]
    assert right.float().mean() > 0.99
    for i, name in enumerate(SPECIES):
        assert right[batch.attributes["species"] == i].float().mean() > 0.93, name
    second = shares.gather(1, batch.attributes["second_colour"][:, None])[:, 0]
    assert second.quantile(0.02) > 0.08 and (shares.sum(1) - 1).abs().max() < 1e-5


# ---- captions


def test_captions_state_what_they_claim_and_nothing_false():
    for split in SPLITS:
        batch = sample_critters(1500, 16, seed=8, split=split)
        for i, (critter, text) in enumerate(zip(batch.critters, batch.captions)):
            stated = {k: getattr(critter, k) for k in ATTRIBUTES if batch.stated[k][i]}
            assert parse_caption(text) == stated, text


def test_the_batch_agrees_with_itself():
    batch = sample_critters(200, 16, seed=1)
    assert (
        len(batch)
        == 200
        == len(batch.captions)
        == len(batch.critters)
        == len(batch.images)
    )
    for key, options in ATTRIBUTES.items():
        assert (
            batch.attributes[key].dtype == torch.long
            and batch.stated[key].dtype == torch.bool
        )
        assert [options[i] for i in batch.attributes[key].tolist()] == [
            getattr(c, key) for c in batch.critters
        ]


def test_vocabulary_is_closed_and_every_word_is_used():
    words = {
        w.strip(",")
        for text in sample_critters(6000, 16, seed=4).captions
        for w in text.split()
    }
    assert words == set(VOCABULARY)


def test_colours_are_nearly_always_said_and_the_rest_sometimes():
    mentioned = {
        k: v.float().mean().item() for k, v in sample_critters(3000, 16).stated.items()
    }
    assert (
        mentioned["species"] == 1
        and mentioned["body_colour"] > 0.93
        and mentioned["second_colour"] > 0.75
    )
    for key in ("eye_colour", "action", "size", "facing"):
        assert 0.2 < mentioned[key] < 0.7, key


def test_sleepers_have_closed_eyes_and_no_caption_says_otherwise():
    batch = sample_critters(3000, 16, seed=6)
    for critter, text in zip(batch.critters, batch.captions):
        assert (critter.eye_colour == "closed") == (critter.action == "sleeping")
        if critter.action == "sleeping":
            assert not any(f"{c} eyes" in text for c in EYE_COLOURS), text


@pytest.mark.parametrize(
    "prompt, critter",
    [
        ("a blue and red dragon", Critter("dragon", "blue", "red")),
        (
            "a drawing of a green dragon with red eyes",
            Critter("dragon", "green", "blue", "red"),
        ),
        ("drawing of a brown and black cat", Critter("cat", "brown", "black")),
        (
            "a drawing of a blue and red dragon with green eyes, breathing fire",
            Critter("dragon", "blue", "red", "green", "breathing fire"),
        ),
    ],
)
def test_the_prompts_of_the_report_are_captions(prompt, critter):
    generator = seeded_generator(0, "prompts")
    assert any(write_caption(critter, generator)[0] == prompt for _ in range(6000))
    assert (critter.species, critter.body_colour) not in HELD_OUT_PAIRS


def test_a_caption_is_the_same_for_the_same_generator():
    c = Critter("owl", "blue", "red")
    assert write_caption(c, seeded_generator(1)) == write_caption(
        c, seeded_generator(1)
    )


def test_parse_refuses_unknown_words():
    with pytest.raises(UserError, match="unknown word 'dargon'; did you mean 'dragon'"):
        parse_caption("a blue dargon")
    assert parse_caption("") == {} and parse_caption("A Big Owl.") == {
        "species": "owl",
        "size": "large",
    }


# ---- splits


def test_held_out_pairs_are_spread_over_species_and_colours():
    assert {s for s, _ in HELD_OUT_PAIRS} == set(SPECIES)
    assert {c for _, c in HELD_OUT_PAIRS} == set(COLOURS)
    assert not HELD_OUT_PAIRS & {("dragon", "blue"), ("dragon", "green")}
    assert ("owl", "orange") in HELD_OUT_PAIRS


def of_new_parts_only(split):
    "A split's combinations without those that contain another split's pair."
    keys = HELD_OUT_KEYS[split]
    pairs = [
        (HELD_OUT[other], [keys.index(k) for k in parts])
        for other, parts in HELD_OUT_KEYS.items()
        if other != split and set(parts) <= set(keys)
    ]
    return {
        c
        for c in HELD_OUT[split]
        if not any(tuple(c[i] for i in at) in hidden for hidden, at in pairs)
    }


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_combinations_appear_in_their_own_split_only(split):
    "A held-out split shows all of its combinations, and none of another's."
    at = sample_attributes(20_000, seed=1, split=split)
    for hidden, keys in HELD_OUT_KEYS.items():
        rows = torch.stack([at[k] for k in keys], 1).unique(dim=0).tolist()
        found = {
            tuple(ATTRIBUTES[k][i] for k, i in zip(keys, row, strict=True))
            for row in rows
        }
        if split == hidden:
            assert found == of_new_parts_only(hidden)
        else:
            assert found and not found & HELD_OUT[hidden], hidden
    assert (at["body_colour"] != at["second_colour"]).all()
    for key, options in ATTRIBUTES.items():
        assert set(at[key].tolist()) == set(range(len(options))), key


def test_what_a_triple_combines_occurs_in_training_in_pairs():
    at = sample_attributes(20_000, seed=1, split="train")
    for i, j in ((0, 1), (0, 2), (1, 2)):
        keys = [HELD_OUT_KEYS["held_out_triples"][k] for k in (i, j)]
        seen = torch.stack([at[k] for k in keys], 1).unique(dim=0).tolist()
        seen = {tuple(ATTRIBUTES[k][n] for k, n in zip(keys, row)) for row in seen}
        drawn = of_new_parts_only("held_out_triples")
        assert len(drawn) > 50 and {(t[i], t[j]) for t in drawn} <= seen


def test_splits_are_different_streams():
    batches = [sample_critters(64, 16, seed=0, split=s) for s in SPLITS]
    assert len({digest(b) for b in batches}) == len(SPLITS)
    streams = {tuple(b.attributes["action"].tolist()) for b in batches}
    assert len(streams) == len(SPLITS)


# ---- mistakes


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: Critter("dragn", "blue", "red"),
            r"unknown species 'dragn'; did you mean 'dragon'\?",
        ),
        (
            lambda: Critter("dragon", "bleu", "red"),
            r"unknown body colour 'bleu'; did you mean 'blue'\?",
        ),
        (
            lambda: Critter("dragon", "blue", "gray"),
            r"unknown second colour 'gray'; did you mean 'gr",
        ),
        (
            lambda: Critter("dragon", "blue", "red", "gren"),
            r"unknown eye colour 'gren'; did you mean 'green'\?",
        ),
        (
            lambda: Critter("dragon", "blue", "red", action="sleepin"),
            r"unknown action 'sleepin'; did you mean 'sleeping'\?",
        ),
        (
            lambda: Critter("dragon", "blue", "red", size="smal"),
            r"unknown size 'smal'; did you mean 'small'\?",
        ),
        (lambda: Critter("dragon", "blue", "red", facing="up"), r"unknown facing 'up'"),
        (
            lambda: Critter("dragon", "blue", "blue"),
            "body and second colour are both 'blue'; choose two different colours",
        ),
        (
            lambda: Critter("dragon", "blue", "red", "red", "sleeping"),
            "a sleeping critter cannot have red eyes; leave out the eyes",
        ),
        (
            lambda: Critter("dragon", "blue", "red", "closed", "running"),
            "a critter that is running cannot have closed eyes",
        ),
        (lambda: render([]), "no critters to draw"),
        (
            lambda: sample_critters(4, split="training"),
            r"unknown split 'training'; did you mean 'train'\?",
        ),
        (lambda: sample_critters(0), "n must be a whole number of at least 1, not 0"),
        (lambda: sample_critters(-3), "n must be a whole number of at least 1, not -3"),
        *[
            (
                lambda s=s: sample_critters(4, s),
                f"size must be a whole number of pixels from 16 to 512, not {s}",
            )
            for s in (0, 15, 1000)
        ],
        *[
            (
                lambda s=s: render([Critter("owl", "red", "blue")], s),
                f"size must be a whole number of pixels from 16 to 512, not {s}",
            )
            for s in (0, 15, 513)
        ],
        (
            lambda: render_logo(8),
            "size must be a whole number of pixels from 16 to 512, not 8",
        ),
    ],
)
def test_mistakes_get_one_clear_line(call, message):
    with pytest.raises(UserError, match=message) as e:
        call()
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: sample_critters(4, "64"),
            "size must be a whole number of pixels from 16 to 512, not '64'",
        ),
        (lambda: render([Critter("owl", "red", "blue")], 32.5), "not 32.5"),
        (
            lambda: sample_critters("4"),
            "n must be a whole number of at least 1, not '4'",
        ),
        (
            lambda: sample_critters(True),
            "n must be a whole number of at least 1, not True",
        ),
        (lambda: Critter(7, "red", "blue"), "unknown species 7"),
    ],
)
def test_wrong_types_get_one_clear_line(untyped, call, message):
    with pytest.raises(UserError, match=message):
        call()


# ---- the logo


def test_logo_is_a_dragon_that_can_lie_on_any_ground():
    image, layers = render_logo(64), render_logo_rgba(64)
    assert (
        image.shape == (3, 64, 64)
        and layers.shape == (4, 64, 64)
        and layers.dtype == torch.uint8
    )
    assert (layers[3, 0, 0], layers[3].max()) == (0, 255)
    alpha = layers[3:].float() / 255
    on_white = layers[:3].float() / 255 * alpha + (1 - alpha)
    assert (on_white - (image + 1) / 2).abs().max() < 0.02
    assert colour_histogram(image[None]).argmax() == list(COLOURS).index("blue")
