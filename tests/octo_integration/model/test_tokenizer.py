import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from octo_integration.model.sizes import CONFIGS
from octo_integration.model.tokenizer import (
    BOS,
    EOS,
    PAD,
    VOCABULARY,
    detokenize,
    load_tokenizer,
    load_words,
    tokenize,
    train_words,
)


def test_bytes_between_marks_then_padding():
    tokens, mask = tokenize(["ab", ""], 5)
    np.testing.assert_array_equal(tokens, [[BOS, 97, 98, EOS, PAD], [BOS, EOS, PAD, PAD, PAD]])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    assert tokens.dtype == np.int32 and mask.dtype == bool


def test_a_long_text_loses_its_end():
    tokens, mask = tokenize(["abcdef"], 4)
    np.testing.assert_array_equal(tokens, [[BOS, 97, 98, 99]])
    assert mask.all()


def test_no_texts():
    assert tokenize([], 4)[0].shape == (0, 4)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=20))
def test_any_text_comes_back(text):
    tokens, _ = tokenize([text], 100)
    assert detokenize(tokens[0]) == text
    assert tokens.max() < VOCABULARY


@pytest.fixture
def published(tmp_path):
    words = {"[UNK]": 0, "<s>": 1, "In": 2, ":": 3, "push": 4, "Out": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path / "tokenizer.json")


def test_a_published_vocabulary_with_the_models_prompt(published):
    encode = load_tokenizer(published, 9, "In: {instruction}\nOut:", vocabulary=6)
    tokens, mask = encode(["Push it", "push"])
    np.testing.assert_array_equal(tokens, [[1, 2, 3, 4, 0, 5, 3, 0, 0], [1, 2, 3, 4, 5, 3, 0, 0, 0]])
    np.testing.assert_array_equal(mask.sum(1), [7, 6])
    assert load_tokenizer(published, 3, "{instruction}", vocabulary=6)(["push push push push"])[0].shape == (1, 3)


def test_bytes_with_a_prompt():
    encode = load_tokenizer("bytes", 6, "<{instruction}>", vocabulary=VOCABULARY)
    np.testing.assert_array_equal(encode(["a"])[0], tokenize(["<a>"], 6)[0])


LONG = "pick up the black bowl next to the ramekin and place it on the plate"


def test_a_lost_end_is_told_once_with_what_would_keep_it(published, caplog):
    """`tiny` took three tasks of LIBERO for one and the same, and said nothing."""
    encode = load_tokenizer("tiny", 16, "{instruction}", vocabulary=768)
    encode(["open the drawer", LONG.replace("ramekin", "plate")])
    encode([LONG])
    (message,) = caplog.messages
    assert "'pick up the black bowl next to the plate and place it on the plate' takes 25 tokens" in message
    assert "reads 16: its end is lost; give --instruction-length 25 or more" in message
    caplog.clear()
    whole = load_tokenizer("tiny", 30, "{instruction}", vocabulary=768)([LONG])[1]
    assert whole.sum() == 30 and not caplog.messages
    load_tokenizer("bytes", 8, "do {instruction}", vocabulary=VOCABULARY)(["push", "push it"])
    (message,) = caplog.messages
    assert "'push' takes 9 tokens, of which the model reads 8" in message


def test_a_tokenizer_that_cannot_be_used(published, tmp_path):
    with pytest.raises(ValueError, match="has 6 tokens, the model's embedding 5 rows"):
        load_tokenizer(published, 4, "{instruction}", vocabulary=5)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="is no tokenizer.json, or damaged"):
        load_tokenizer(published, 4, "{instruction}", vocabulary=6)
    with pytest.raises(FileNotFoundError, match="there is no tokenizer"):
        load_tokenizer("nowhere.json", 4, "{instruction}", vocabulary=6)


def test_words_of_a_corpus_and_any_other_text(tmp_path):
    words = train_words(["open the drawer", "close the drawer", "the red cube"], 290)
    words.save(str(tmp_path / "tokenizer.json"))
    own = load_words(str(tmp_path / "tokenizer.json"))
    assert own.size <= 290 and len({own.pad, own.bos, own.eos}) == 3
    assert len(own.encode("the drawer")) < len(own.encode("qwx zjkvb"))
    for text in ("The drawer", "ünïcödé 7"):
        assert words.decode(own.encode(text)).strip() == text.lower()
    tokens, mask = load_tokenizer(str(tmp_path / "tokenizer.json"), 8, "{instruction}", 290)(["the drawer"])
    n = mask.sum()
    assert tokens[0, 0] == own.bos and tokens[0, n - 1] == own.eos
    np.testing.assert_array_equal(tokens[0, 1 : n - 1], own.encode("the drawer"))


def test_the_shipped_vocabulary_fits_the_models_that_name_it():
    for name in ("tiny", "small"):
        config = CONFIGS[name]
        tokens, mask = load_tokenizer(
            config.tokenizer, config.instruction_length, config.prompt, config.language.vocabulary
        )(["move to the red cube"])
        assert mask.sum() <= 10 and tokens.max() < config.language.vocabulary


def test_a_published_vocabulary_without_marks_cannot_write_dialogues(published):
    with pytest.raises(ValueError, match="lacks one of <pad>, <bos>, <eos>"):
        load_words(published)
    assert load_words("bytes").encode("a") == [97]
