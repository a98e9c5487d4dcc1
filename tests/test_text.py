"""Chapter 7: tokens, masks, encoders, null text, the cache."""

import warnings

import pytest
import torch
import transformers
from tiny_encoders import save_tiny_encoders

from t2i_tutorial import critters
from t2i_tutorial import text as T
from t2i_tutorial.clip import CLIP, CLIPTextEncoder
from t2i_tutorial.core import UserError

LONG = "a small blue and red dragon with green eyes, breathing fire, facing left"


@pytest.fixture(scope="module")
def tokenizer():
    return T.Tokenizer.train(T.sample_captions(3000))


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    return save_tiny_encoders(tmp_path_factory.mktemp, tokenizer.words)


@pytest.fixture(scope="module", params=["t5", "clip", "ours", "ours+token-embeddings"])
def encoder(request, folders):
    if request.param.startswith("ours"):
        return CLIPTextEncoder(
            CLIP.from_pretrained("critters-clip"), request.param != "ours"
        )
    return T.PretrainedTextEncoder(folders[request.param])


def tokenize(encoder, texts):
    return (
        encoder.tokenize(texts)
        if hasattr(encoder, "tokenize")
        else encoder.tokenizer.encode(texts)
    )


def test_every_caption_word_is_few_tokens_and_comes_back(tokenizer):
    captions = T.sample_captions(500, seed=9, split="held_out", tries=3)
    ids, mask = tokenizer.encode(captions)
    assert [tokenizer.decode(row.tolist()) for row in ids] == captions
    assert int(mask.sum(1).max()) <= 30 and set(critters.VOCABULARY) <= set(
        tokenizer.words
    )
    assert all(
        len(tokenizer.tokens(w)) == 1 for w in (*critters.SPECIES, *critters.COLOURS)
    )


@pytest.mark.parametrize("text", ["schmetterling 龍 ☃", "naïve", "", "x" * 40, "🐉"])
def test_no_text_is_unrepresentable(tokenizer, text):
    ids, mask = tokenizer.encode([text])
    assert tokenizer.decode(ids[0].tolist()) == text and mask.all()


def test_capitals_and_unicode_forms_are_one(tokenizer):
    assert torch.equal(
        tokenizer.encode(["A Red CAT"])[0], tokenizer.encode(["a red cat"])[0]
    )
    assert torch.equal(
        tokenizer.encode(["cafe\u0301"])[0], tokenizer.encode(["caf\u00e9"])[0]
    )


def test_long_text_is_cut_with_a_warning_and_closed(tokenizer):
    with pytest.warns(T.TextCutWarning, match="only 48 of 101 tokens .* shorten it"):
        ids, mask = tokenizer.encode(["red " * 100])
    assert ids.shape == (1, 48) and ids[0, -1] == T.Tokenizer.END and mask.all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids, mask = tokenizer.encode(["red " * 47])  # just fits
    assert ids.shape == (1, 48) and tokenizer.count_tokens(["red " * 47]) == [48]


def cut_notes(encode, texts):
    "What is said about texts that are cut."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        encode(texts)
    return [str(w.message) for w in caught if w.category is T.TextCutWarning]


@pytest.mark.parametrize("cached", [False, True])
def test_texts_that_are_cut_are_one_line_with_count_and_longest(
    encoder, tmp_path, cached
):
    "Row F8: of an encoder and of its cache, in however many batches."
    if cached:
        encoder = T.CachedTextEncoder(encoder, tmp_path, batch_size=2)
    texts = [f"a red cat {'and a cat ' * n}" for n in (0, 1, 30, 40, 35, 40)]
    (note,) = cut_notes(encoder.encode, texts)
    assert note.startswith("3 of 5 texts have more than the ") and "\n" not in note
    assert (
        "the longest has " in note and "choose a text encoder that reads more" in note
    )
    assert cut_notes(encoder.encode, texts[:2]) == []
    longer = cut_notes(encoder.encode, ["a red cat " * 60])
    assert len(longer) == 1 and longer[0].endswith("; shorten it")
    assert len(cut_notes(encoder.encode, ["a red cat " * 59])) == (not cached)
    assert len(cut_notes(encoder.encode, texts[3:4])) == (not cached)


def test_an_encoder_that_cannot_count_still_speaks_for_itself(tokenizer, tmp_path):
    "Row F8: only what was said once for all batches is kept from being said again."

    class Other:
        name, dim = "other", 4

        def encode(self, texts):
            mask = tokenizer.encode(texts)[1]
            return T.TextEmbedding(
                torch.ones(*mask.shape, 4), mask, torch.ones(len(texts), 4)
            )

        def oov_words(self, texts):
            return {}

    other = Other()
    assert T.warn_cut(other, ["red " * 100]) == 0
    cached = T.CachedTextEncoder(other, tmp_path)
    assert len(cut_notes(cached.encode, ["red " * 100])) == 1


def test_a_text_is_encoded_the_same_however_it_is_spaced(encoder, tmp_path):
    "Row F1: also where no prompt is checked, and once in a cache."
    odd = ["\ufeffa\u00a0red  cat\n", "a red cat\u200b", "a r\u00aded cat"]
    want = encoder.encode(["a red cat"])
    for text in odd:
        got = encoder.encode([text])
        assert torch.equal(got.tokens, want.tokens)
        assert torch.equal(got.pooled, want.pooled)
    assert encoder.oov_words(odd) == {}
    cached = T.CachedTextEncoder(encoder, tmp_path)
    assert torch.equal(cached.encode(odd).pooled, want.pooled.expand(3, -1))
    assert list(cached.rows) == ["a red cat"]


def test_fixed_length_pads_or_cuts(tokenizer):
    ids, mask = tokenizer.encode(["a red cat"], length=9)
    assert ids.shape == (1, 9) and mask.sum() == 4


def test_tokenizer_saves_and_loads(tokenizer, tmp_path):
    other = T.Tokenizer.load(tokenizer.save(tmp_path / "t.json"))
    assert (
        torch.equal(other.encode([LONG])[0], tokenizer.encode([LONG])[0])
        and other.words == tokenizer.words
    )
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match="no tokenizer of ours"):
        T.Tokenizer.load(tmp_path / "bad.json")


@pytest.mark.parametrize(
    "texts, message",
    [
        ("a red cat", "not one string"),
        ([], "list is empty"),
        (["a", 3], "text 1 is not a string"),
        (["a", "b\udcff"], "text 1 holds half a Unicode character"),
    ],
)
def test_bad_texts_get_one_line(untyped, texts, message):
    with pytest.raises(UserError, match=message):
        T.check_texts(texts)


def test_full_caption_is_of_the_grammar_and_says_all():
    for c in critters.sample_critters(40, size=16, split="test").critters:
        assert critters.parse_caption(T.full_caption(c)) == {
            k: getattr(c, k) for k in critters.ATTRIBUTES
        }


def test_what_stands_in_padding_changes_no_bit(encoder):
    "Fault MI-4: for a T5, a CLIP and our own encoder, at every output."
    ids, mask = tokenize(encoder, ["a red cat", LONG])
    assert not mask.all()
    before = encoder.embed(ids, mask)
    for junk in (2, 5, 60):
        after = encoder.embed(ids.masked_fill(~mask, junk), mask)
        for name in ("tokens", "mask", "pooled"):
            assert torch.equal(getattr(before, name), getattr(after, name)), name


def test_a_text_is_the_same_alone_and_in_longer_company(encoder):
    alone, together = (
        encoder.encode(["a red cat"]),
        encoder.encode([LONG, "a red cat", LONG]),
    )
    n = alone.tokens.shape[1]
    assert torch.allclose(
        alone.tokens[0], together.tokens[1, :n], atol=1e-5
    ) and torch.allclose(alone.pooled[0], together.pooled[1], atol=1e-5)
    assert (together.tokens[1, n:] == 0).all()


def test_mean_pool_ignores_nan_and_short_captions_stay_apart():
    "Fault MI-4: pooled over 256 positions, two random captions had a cosine of 0.98."
    torch.manual_seed(0)
    h, mask = torch.randn(2, 256, 32), torch.arange(256).expand(2, -1) < 8
    h = torch.where(mask[..., None], h, torch.randn(32))

    def cosine(p):
        return torch.cosine_similarity(p[0], p[1], dim=0).abs()

    assert cosine(h.mean(1)) > 0.9 and cosine(T.mean_pool(h, mask)) < 0.6
    assert torch.equal(
        T.mean_pool(h.masked_fill(~mask[..., None], float("nan")), mask),
        T.mean_pool(h, mask),
    )


def test_encoders_are_frozen_and_have_one_interface(encoder):
    e = encoder.encode([LONG])
    assert (
        isinstance(encoder, T.TextEncoder)
        and e.pooled.shape == (1, encoder.dim)
        and e.tokens.shape[-1] == encoder.dim
    )
    assert not e.pooled.requires_grad and not any(
        p.requires_grad for p in encoder.parameters()
    )
    encoder.train()
    assert not encoder.training


def test_clip_pooling_equals_the_real_class(folders):
    encoder = T.PretrainedTextEncoder(folders["clip"])
    ids, mask = encoder.tokenize(["a red cat", LONG])
    real = transformers.CLIPTextModel.from_pretrained(folders["clip"])(
        ids, mask.long()
    ).pooler_output
    assert torch.allclose(encoder.embed(ids, mask).pooled, real, atol=1e-6)


def test_t5_tokens_equal_the_real_class(folders):
    encoder = T.PretrainedTextEncoder(folders["t5"])
    ids, mask = encoder.tokenize(["a red cat"])
    real = transformers.T5EncoderModel.from_pretrained(folders["t5"])(
        ids, mask.long()
    ).last_hidden_state
    assert torch.allclose(encoder.embed(ids, mask).tokens, real, atol=1e-6)


def test_hub_encoder_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(T, "_online", lambda: False)
    with pytest.raises(UserError, match="hf download google/t5-v1_1-none-of-ours"):
        T.PretrainedTextEncoder("google/t5-v1_1-none-of-ours")
    with pytest.raises(UserError, match="no folder"):
        T.PretrainedTextEncoder("./nowhere")
    with pytest.raises(UserError, match="no whole text model"):
        T.PretrainedTextEncoder(str(tmp_path))


def test_other_models_and_foreign_code_are_refused(tmp_path):
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="'bert' model"):
        T.PretrainedTextEncoder(str(tmp_path))
    (tmp_path / "config.json").write_text(
        '{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}'
    )
    (tmp_path / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass"
    )
    with pytest.raises(UserError):
        T.PretrainedTextEncoder(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_words_outside_the_vocabulary_are_named_with_similar_ones(encoder, folders):
    with pytest.warns(UserWarning, match="purpel") as seen:
        found = T.warn_oov(encoder, ["a purpel cat"])
    assert list(found) == ["purpel"] and len(seen) == 1
    if isinstance(encoder, CLIPTextEncoder):
        assert found["purpel"][0] == "purple"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert T.warn_oov(encoder, ["a red cat", LONG]) == {}


def test_null_text_replaces_everything_and_learns():
    text = T.TextEmbedding(
        torch.randn(3, 5, 8), torch.ones(3, 5, dtype=torch.bool), torch.randn(3, 8)
    )
    null = T.NullTextEmbedding(8)
    out = null.drop_captions(text, torch.tensor([True, False, False]))
    assert (
        torch.equal(out.tokens[0], text.tokens[0])
        and torch.equal(out.pooled[0], text.pooled[0])
        and out.mask[0].all()
    )
    assert torch.equal(out.tokens[1], out.tokens[2]) and out.mask[1].tolist() == [
        True,
        False,
        False,
        False,
        False,
    ]
    (out.tokens.sum() + out.pooled.sum()).backward()
    assert (null.token.grad != 0).all() and (null.pooled.grad != 0).all()


def test_embedding_can_be_indexed_moved_and_trimmed():
    text = T.TextEmbedding(
        torch.randn(3, 5, 8),
        torch.arange(5) < torch.tensor([[2], [3], [1]]),
        torch.randn(3, 8),
    )
    assert (
        len(text[[0, 2]]) == 2
        and len(text[1]) == 1
        and text[torch.tensor([True, False, True])].pooled.shape == (2, 8)
    )
    assert text.trimmed().tokens.shape == (3, 3, 8)
    half = text.to(torch.float16)
    assert (
        half.tokens.dtype == torch.float16
        and half.mask.dtype == torch.bool
        and text.to("cpu").pooled.dtype == torch.float32
    )


def test_cache_equals_the_encoder_and_encodes_once(encoder, tmp_path):
    calls = []

    class Counting:
        name, dim, oov_words = encoder.name, encoder.dim, encoder.oov_words

        def encode(self, texts):
            calls.extend(texts)
            return encoder.encode(texts)

    first = T.CachedTextEncoder(Counting(), tmp_path).encode(
        ["a red cat", LONG, "a red cat"]
    )
    assert (
        torch.equal(
            first.tokens, encoder.encode(["a red cat", LONG, "a red cat"]).tokens
        )
        and calls.count(LONG) == 1
    )
    again = T.CachedTextEncoder(Counting(), tmp_path).encode([LONG, "a red cat"])
    assert calls.count(LONG) == 1 and torch.equal(again.pooled, first.pooled[[1, 0]])


@pytest.mark.parametrize("fault", ["truncated", "empty", "json", "other"])
def test_a_broken_cache_is_built_again_saying_so(folders, tmp_path, fault):
    encoder = T.PretrainedTextEncoder(folders["t5"])
    good, path = (
        T.CachedTextEncoder(encoder, tmp_path).encode([LONG]),
        next(tmp_path.glob("*.safetensors")),
    )
    if fault == "other":
        T.save_tensors(path, {"x": torch.zeros(1)})
    else:
        path.write_bytes(
            {"truncated": path.read_bytes()[:-40], "empty": b"", "json": b"{}"}[fault]
        )
    with pytest.warns(UserWarning, match="built again"):
        healed = T.CachedTextEncoder(encoder, tmp_path).encode([LONG])
    assert torch.equal(healed.tokens, good.tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        T.CachedTextEncoder(encoder, tmp_path).encode([LONG])


def test_a_cache_of_other_weights_is_stale(folders, tmp_path):
    encoder = T.PretrainedTextEncoder(folders["t5"])
    old = T.CachedTextEncoder(encoder, tmp_path).encode(["a red cat"])
    with torch.no_grad():
        encoder.model.get_input_embeddings().weight.mul_(-2)
    with pytest.warns(UserWarning, match="encoder has changed"):
        new = T.CachedTextEncoder(encoder, tmp_path).encode(["a red cat"])
    assert not torch.allclose(old.pooled, new.pooled)


def test_two_encoders_do_not_share_a_file(folders, tmp_path):
    for kind in ("t5", "clip"):
        T.CachedTextEncoder(T.PretrainedTextEncoder(folders[kind]), tmp_path).encode(
            [LONG]
        )
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_note_of_many_long_unknown_words_is_one_short_line():
    class Encoder:
        name, dim = "any", 8

        def encode(self, texts):
            raise NotImplementedError

        def oov_words(self, texts):
            return {f"{i}{'x' * 900}": [] for i in range(40)}

    with pytest.warns(UserWarning, match="and 35 more; the image") as notes:
        T.warn_oov(Encoder(), ["a text"])
    assert len(str(notes[0].message)) < 400
