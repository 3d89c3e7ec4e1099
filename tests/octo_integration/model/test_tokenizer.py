import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from octo_integration.model.sizes import CONFIGS
from octo_integration.model.tokenizer import BOS, EOS, PAD, VOCABULARY, detokenize, tokenize


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
    assert tokens.max() < VOCABULARY == CONFIGS["tiny"].language.vocabulary
