"""A model of dequantised weights says so: in its layers, its text and in every score."""

import pytest

import workbench as wb
from tests.families import tiny
from tests.gguf_files import words, write_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf")
    write_llama(path / "model.gguf", lambda name: "Q6_K" if "blk.1.ffn" in name else "Q4_1", settings=words())
    return path


@pytest.fixture(scope="module")
def m(folder):
    return wb.open_model(folder / "model.gguf")


def test_the_quantisation_is_in_the_text_and_in_the_layers(m):
    assert m.quantisation == "Q4_1"
    assert repr(m) == "HookedModel(model.gguf: 2 layers FF, 4 heads, 2 KV heads, context 512, float32, weights of Q4_1)"
    assert [layer.quantisation for layer in m.layers] == ["Q4_1", "Q4_1+Q6_K"]


def test_a_folder_opens_as_its_file(m, folder):
    tokens = m.tokenizer("a b c")["input_ids"]
    same = wb.open_model(folder)
    assert (same.pattern([tokens], 1, 2) == m.pattern([tokens], 1, 2)).all()


def test_every_score_has_the_quantisation_among_its_flags(m):
    table = wb.score(m, ["induction", "far_mass", "copying"], probes="repeats:n=16,n_sequences=2")
    assert set(table.detector) == {"induction", "far_mass", "copying"}
    assert table["flags"].str.split(";").map(lambda flags: "quantised=Q4_1" in flags).all()
    assert table[table.detector == "far_mass"]["flags"].str.startswith("far_window=").all()


def test_a_copy_that_transformers_saved_keeps_the_flag(m, tmp_path):
    m.model.save_pretrained(tmp_path)
    again = wb.open_model(tmp_path)
    assert again.quantisation == "Q4_1"
    assert [layer.quantisation for layer in again.layers] == ["Q4_1", "Q4_1+Q6_K"]


def test_a_model_of_plain_floats_has_no_quantisation_and_no_flag():
    plain = wb.open_model(tiny("llama"))
    assert plain.quantisation == ""
    assert "weights" not in repr(plain)
    assert (wb.score(plain, ["induction"], probes="repeats:n=16,n_sequences=2")["flags"] == "").all()
