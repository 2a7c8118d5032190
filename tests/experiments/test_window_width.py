"""The store of hybrids of several windows: each run is one recipe, and the table has each run's heads, once."""

import pytest

from workbench.experiments.window_width import run_window_widths, width_recipe, width_runs, width_sentences
from workbench.heads import WorkbenchError
from workbench.pretrain.corpus import CorpusSettings, prepare_corpus, python_sources


def made(folder, n_files):
    words = [f"word{i} follows word{i * 7 % 50} and then" for i in range(50)]
    for n in range(n_files):
        (folder / f"{n}.txt").write_text("\n".join(words[(i * (n + 3)) % 50] for i in range(500)))
    return prepare_corpus(sorted(folder.glob("*.txt")), folder / "corpus", CorpusSettings("text", 300, 9_000_000, 0))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return made(tmp_path_factory.mktemp("text"), 6)


def test_runs_of_one_seed_differ_in_nothing_but_their_windows(corpus):
    runs = width_runs((16, 32), seeds=2)
    assert [run.name for run in runs[:3]] == ["window16-seed0", "window32-seed0", "full-seed0"]
    narrow, wide, full = (width_recipe(run, corpus, steps=5) for run in runs[:3])
    assert (narrow.shape.window, wide.shape.window) == (16, 32)
    assert (narrow.variant, full.variant) == ("hybrid", "full")
    assert {(r.seed, r.steps, r.batch, r.length, r.corpus) for r in (narrow, wide, full)} == {
        (0, 5, 16, 256, corpus.digest)
    }


def test_windows_that_hide_nothing_or_stand_twice_are_refused(corpus):
    with pytest.raises(WorkbenchError, match="hides nothing"):
        width_recipe(width_runs((256,))[0], corpus, steps=5)
    with pytest.raises(WorkbenchError, match="each once"):
        width_runs((16, 16))


@pytest.mark.slow
def test_the_table_has_each_kind_of_layer_of_each_run_and_says_what_has_not_emerged(tmp_path):
    settings = CorpusSettings("python", 300, 3_000_000, 0)
    corpus = prepare_corpus(python_sources()[::20], tmp_path / "corpus", settings)
    runs = width_runs((16,), seeds=1)
    table = run_window_widths(tmp_path / "store", corpus, runs, steps=4)
    on_repeats = table[(table.detector == "induction") & (table.probe == "repeats")]
    assert sorted(zip(on_repeats.window, on_repeats.layers, strict=True)) == [
        (0, "full"),
        (16, "full"),
        (16, "sliding"),
    ]
    assert set(table.trained) == {4 * 16 * 256}
    assert any("in none of 1 seeds" in sentence for sentence in width_sentences(table))
