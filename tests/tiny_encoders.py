"""A tiny T5 and a tiny CLIP text model, random, saved by the real classes."""

import torch
import transformers
from tokenizers import Tokenizer as BPE
from tokenizers import models, pre_tokenizers, processors


def save_tiny_encoders(
    make_folder,  # called with a name, gives a new folder
    words,  # of the vocabulary
) -> dict[str, str]:  # "t5" and "clip" -> folder
    "A random T5 encoder and a random CLIP text model, saved by the real classes."
    torch.manual_seed(0)
    tiny = dict(vocab_size=128)
    made = {
        "t5": transformers.T5EncoderModel(
            transformers.T5Config(
                **tiny, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4
            )
        ),
        "clip": transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                **tiny,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=24,
                eos_token_id=1,
                bos_token_id=0,
                pad_token_id=1,
            )
        ),
    }
    paths = {}
    for kind, model in made.items():
        paths[kind] = str(make_folder(kind))
        tokenizer = BPE(
            models.WordLevel(
                {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", ",", *words])},
                unk_token="<unk>",
            )
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
        pad = "<pad>" if kind == "t5" else "</s>"  # CLIP pads with its end mark
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token=pad,
            eos_token="</s>",
            unk_token="<unk>",
        ).save_pretrained(paths[kind])
        model.save_pretrained(paths[kind])
    return paths
