"""Text encoders: hashed word vectors are the same everywhere; Phi's features are cached and Phi is not loaded again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from nova_fixtures import write_phi
from par_agent.errors import UserError
from par_agent.modeling.text_encoder import HashTextEncoder, PhiTextEncoder, StoredTextEncoder

WIDTH = 16
CUBE = [1.06415, 0.347794, -1.009549]


def test_a_word_always_maps_to_the_same_vector_whatever_its_case_and_punctuation():
    encoder = HashTextEncoder(dim=8, length=16)
    features = encoder.encode("Push a cube, PUSH!")
    assert features.shape == (4, 8) and features.dtype == torch.float32
    assert torch.equal(features[0], features[3])
    assert not torch.equal(features[0], features[1])


def test_word_vectors_do_not_change_between_versions():
    vector = HashTextEncoder(dim=3, length=4).encode("cube")[0]
    torch.testing.assert_close(vector, torch.tensor(CUBE), atol=1e-6, rtol=0)


def test_word_vectors_have_unit_variance():
    features = HashTextEncoder(dim=512, length=64).encode(" ".join(f"word{i}" for i in range(64)))
    assert features.var().item() == pytest.approx(1, abs=0.03)


def test_an_instruction_of_more_words_than_are_read_is_refused_and_it_may_be_empty():
    encoder = HashTextEncoder(dim=8, length=3)
    assert encoder.encode("one two three").shape == (3, 8)
    with pytest.raises(UserError, match=r"'one two three four' has 4 words; this model reads at most 3: shorten it"):
        encoder.encode("one two three four")
    assert encoder.encode(" ... ").shape == (0, 8)
    with pytest.raises(ValueError, match="dim=0"):
        HashTextEncoder(dim=0, length=3)


@pytest.fixture(scope="module")
def phi_folder(tmp_path_factory) -> Path:
    return write_phi(tmp_path_factory.mktemp("nova"), WIDTH)


def test_phi_gives_one_feature_row_per_token_and_none_for_the_empty_prompt(phi_folder):
    encoder = PhiTextEncoder(phi_folder, dim=WIDTH, length=3)
    assert encoder.encode("push cube").shape == (2, WIDTH)
    assert encoder.encode("push red cube").shape == (3, WIDTH)
    assert encoder.encode("").shape == encoder.encode(" ").shape == (0, WIDTH)


def test_an_instruction_of_more_tokens_than_phi_reads_is_refused_and_not_cached(phi_folder, tmp_path):
    with pytest.raises(UserError, match="'push the red cube' has 4 tokens; this model reads at most 3"):
        PhiTextEncoder(phi_folder, cache=tmp_path, dim=WIDTH, length=3).encode("push the red cube")
    assert not list(tmp_path.iterdir())


COMPOSED, DECOMPOSED = "push the caf\u00e9 cup", " push  the cafe\u0301 cup"


def test_unicode_spelling_and_spaces_do_not_change_what_is_read(phi_folder, tmp_path):
    hashed, phi = HashTextEncoder(dim=8, length=4), PhiTextEncoder(phi_folder, cache=tmp_path, dim=WIDTH)
    stored = StoredTextEncoder({DECOMPOSED: torch.ones(2, 8)}, dim=8, length=4)
    for encoder in (hashed, phi, stored):
        assert torch.equal(encoder.encode(COMPOSED), encoder.encode(DECOMPOSED))
    assert len(hashed.encode(DECOMPOSED)) == 4
    assert len(list(tmp_path.iterdir())) == 1


def test_cached_features_need_no_phi_and_are_equal(phi_folder, tmp_path):
    features = PhiTextEncoder(phi_folder, cache=tmp_path, dim=WIDTH).encode("push the cube")
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
    assert torch.equal(PhiTextEncoder(cache=tmp_path, dim=WIDTH).encode("push the cube"), features)
    with pytest.raises(UserError, match="'lift the cube' are not cached"):
        PhiTextEncoder(cache=tmp_path, dim=WIDTH).encode("lift the cube")


def test_two_encoders_with_different_names_do_not_share_cached_features(phi_folder, tmp_path):
    PhiTextEncoder(phi_folder, cache=tmp_path, dim=WIDTH).encode("push")
    with pytest.raises(UserError, match="not cached"):
        PhiTextEncoder(cache=tmp_path, dim=WIDTH, model_id="another").encode("push")


def test_a_damaged_cache_file_and_a_wrong_width_are_named(phi_folder, tmp_path):
    PhiTextEncoder(phi_folder, cache=tmp_path, dim=WIDTH).encode("push")
    with pytest.raises(UserError, match=r"shape \(1, 16\); expected \(tokens, 2560\)"):
        PhiTextEncoder(cache=tmp_path).encode("push")
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match="delete it and encode again"):
        PhiTextEncoder(cache=tmp_path, dim=WIDTH).encode("push")


def test_pickled_phi_weights_are_refused(phi_folder, tmp_path):
    folder = tmp_path / "text_encoder"
    folder.mkdir()
    config = json.loads((phi_folder / "text_encoder" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "pytorch_model.bin").write_bytes(b"not opened")
    (tmp_path / "tokenizer").symlink_to(phi_folder / "tokenizer")
    with pytest.raises(UserError, match="cannot load Phi"):
        PhiTextEncoder(tmp_path, dim=WIDTH).encode("push")


def test_without_transformers_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'par-agent\[nova\]'"):
        PhiTextEncoder(tmp_path).encode("push")


def test_an_encoder_without_model_and_cache_is_refused():
    with pytest.raises(UserError, match="or both"):
        PhiTextEncoder()
