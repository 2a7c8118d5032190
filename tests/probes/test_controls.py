"""A control has the probe's tokens and rows, without the answers in the context."""

import pytest
import torch

from tests.probes.models import bare_model, bpe_model
from workbench import probes
from workbench.heads import WorkbenchError
from workbench.probes.for_one_model import LeftOut


def test_a_control_asks_the_same_and_its_context_does_not_say():
    m = bare_model()
    probe = probes.repeats(m, n=10, n_sequences=9)
    control = probes.control(m, probe)
    assert (control.name, len(control.tokens), control.metric) == ("repeats_without_answers", 5, "copy_accuracy")
    assert control.target_cells is None
    for i, j in enumerate((0, 2, 4, 6, 8)):  # evenly spaced
        rows = probe.answer_rows[probe.answer_rows[:, 0] == j, 1]
        assert control.answer_rows[control.answer_rows[:, 0] == i, 1].tolist() == rows.tolist()
        changed = (control.tokens[i] != probe.tokens[j]).nonzero().flatten().tolist()
        cells = probe.target_cells[probe.target_cells[:, 0] == j, 2]
        assert changed == sorted(set(cells.tolist()))


def test_a_control_is_another_probe_and_no_detector_fits_it():
    from workbench.detectors import all_detectors

    m = bare_model()
    control = probes.build(m, 'without_answers:of="repeats:n=10"')
    assert control.digest != probes.make_probe(control.name, control.tokens, answer_rows=control.answer_rows).digest
    assert not any(d.fits(control) for d in all_detectors().values() if hasattr(d, "fits"))
    assert probes.part(control, 0, 1).is_control


def test_a_text_without_target_cells_has_no_control():
    m = bare_model()
    with pytest.raises(WorkbenchError, match="no target cells"):
        probes.control(m, probes.token_sequences(torch.ones(2, 5, dtype=torch.long)))


def test_one_model_without_a_tokenizer_has_the_probes_of_a_series_each_with_its_control():
    m = bare_model()
    of_one = list(probes.one_model(m).values())
    assert [p.digest for p in of_one if not p.is_control] == [p.digest for p in probes.default(m)]
    assert [p.name for p in of_one if p.is_control] == [f"{p.name}_without_answers" for p in probes.default(m)]


def test_one_model_with_a_tokenizer_has_needles_and_text_and_each_is_built_by_its_notation():
    m = bpe_model()
    of_one = probes.one_model(m)
    assert [p.name for p in of_one.values()] == [
        *("repeats", "repeats_without_answers", "niah_single_2", "niah_single_2_without_answers", "repeated_ngrams"),
    ]
    for written, probe in of_one.items():
        assert probes.build(m, written).digest == probe.digest


def test_what_a_short_context_does_not_hold_is_left_out_and_said():
    m = bpe_model(n_positions=40)
    with pytest.warns(LeftOut, match="niah_single_2:length=40"):
        of_one = probes.one_model(m)
    assert "copy_needle" in {p.name for p in of_one.values()}
