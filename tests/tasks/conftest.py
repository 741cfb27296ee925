from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = ["the quick brown fox jumps over the lazy dog", "naïve café — 東京 😀, the end\n\n"] * 5


@pytest.fixture(scope="session")
def make_tokenizer_file(tmp_path_factory):
    """Trains a tiny byte-level BPE with these special tokens and returns the path of its tokenizer.json."""

    def make(special_tokens: list[str], *, normalise: bool = False) -> str:
        tokenizer = Tokenizer(models.BPE())
        if normalise:
            tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=special_tokens, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(CORPUS, trainer)
        path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
        tokenizer.save(str(path))
        return str(path)

    return make
