"""`workbench get` lists what there is, and refuses what was not accepted."""

import json

from tests.command_process import workbench
from workbench.hub.published_models import PUBLISHED


def test_without_a_name_the_models_are_listed_with_sizes_licences_and_where_they_are(tmp_path):
    (tmp_path / "iglm").mkdir()
    here = {"WORKBENCH_MODELS": str(tmp_path)}
    listed = {row["name"]: row for row in json.loads(workbench("get", "--json", environment=here).stdout)}
    assert set(listed) == set(PUBLISHED)
    assert listed["iglm"]["folder"] == str(tmp_path / "iglm")
    assert listed["smollm2"]["folder"] is None
    assert listed["smollm2"]["download_bytes"] == 92871040
    assert listed["gemma3-270m"]["asks"]
    shown = workbench("get", environment=here).stdout
    for text in ("smollm2", "92.9 MB", "Apache 2.0", "Gemma Terms of Use (asks)"):
        assert text in shown


def test_terms_are_shown_and_nothing_is_fetched_where_nobody_can_be_asked(tmp_path):
    refused = workbench("get", "gemma3-270m", environment={"WORKBENCH_MODELS": str(tmp_path / "models")})
    assert refused.returncode == 2
    assert "https://ai.google.dev/gemma/terms" in refused.stderr
    assert "Pass --accept-licence" in refused.stderr
    assert not (tmp_path / "models").exists()
