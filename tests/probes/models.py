"""Models as probes see them, a tokenizer and a configuration: trained here on the documentation that Python carries."""

import pydoc_data.topics
from functools import cache
from types import SimpleNamespace

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

TEXT = " ".join(pydoc_data.topics.topics.values())


SPLITS = {
    "bytes": (pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()),
    "metaspace": (  # as Llama 2: a space before the first word, digits one by one
        pre_tokenizers.Sequence(
            [pre_tokenizers.Metaspace(), pre_tokenizers.Digits(True), pre_tokenizers.Punctuation()]
        ),
        decoders.Metaspace(),
    ),
    "triples": (  # as Llama 3 and Qwen: digits by threes, without the space before them; line breaks join full stops
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(
                    Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"), "isolated"
                ),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        decoders.ByteLevel(),
    ),
    "words": (pre_tokenizers.Split(Regex(r" ?[^ ]+"), "isolated"), decoders.Fuse()),  # full stops stay with their words
}


@cache
def bpe_model(splits="bytes", *, bos=True, n_positions=1 << 18):
    """BPE of 1500 tokens. `splits`: how text is cut before merging; None merges across spaces and punctuation."""
    tokenizer = Tokenizer(models.BPE())
    if splits:
        tokenizer.pre_tokenizer, tokenizer.decoder = SPLITS[splits]
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        initial_alphabet=[*pre_tokenizers.ByteLevel.alphabet(), " ", "▁"],
        special_tokens=["<s>", "</s>"] if bos else ["</s>"],
        show_progress=False,
    )
    numbers = " ".join(f"{i * 99_991}." for i in range(1, 2000))
    tokenizer.train_from_iterator([*TEXT[:60_000].splitlines(), numbers], trainer)
    named = {"eos_token": "</s>"} | ({"bos_token": "<s>"} if bos else {})
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    config = LlamaConfig(
        vocab_size=1500,
        max_position_embeddings=n_positions,
        bos_token_id=0 if bos else None,
        eos_token_id=1 if bos else 0,
    )
    return SimpleNamespace(tokenizer=fast, config=config)


def bare_model(vocab_size=4000, *, n_positions=1 << 18, config_class=LlamaConfig):
    """A configuration without a tokenizer."""
    config = config_class(vocab_size=vocab_size, max_position_embeddings=n_positions)
    return SimpleNamespace(tokenizer=None, config=config)
