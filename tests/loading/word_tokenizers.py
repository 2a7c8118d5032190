"""Small tokenizers of whole words, and folders of checkpoints that have a configuration and no weights."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def word_tokenizer(n_words=40, *, prefix="w", bos="<s>", **special):
    """A tokenizer of the words w0, w1, …; `<s>` is token 0."""
    words = ["<s>", "</s>", "<unk>", *(f"{prefix}{i}" for i in range(n_words - 3))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {"unk_token": "<unk>", "eos_token": "</s>", **({"bos_token": bos} if bos else {}), **special}
    return PreTrainedTokenizerFast(tokenizer_object=made, **named)


def config_folder(path: Path, *, vocab_size=40, tokenizer=None, **config) -> Path:
    """A checkpoint's folder with a config.json, and a tokenizer if there is one."""
    path.mkdir(parents=True, exist_ok=True)
    special = {"bos_token_id": 0, "eos_token_id": 1}
    LlamaConfig(vocab_size=vocab_size, **{**SIZES, **special, **config}).save_pretrained(path)
    if tokenizer is not None:
        tokenizer.save_pretrained(path)
    return path
