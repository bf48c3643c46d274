"""`simflow doctor`: what automatic choices come to, and where things are kept."""

from simflow_plugin import diagnosis


def test_attention_is_named_as_in_a_configuration_with_the_reason():
    finding = diagnosis._attention()
    assert finding.found in ("picks sdpa (torch's own)", "picks xformers")
    assert finding.meaning


def test_caches_are_shown_with_what_they_hold(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMFLOW_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
    (tmp_path / "features").write_bytes(bytes(2500))
    found = {finding.what: finding.found for finding in diagnosis._parts()}
    assert found["cache: data"] == f"{tmp_path} (2.50 kB)"
    assert found["cache: hub"] == f"{tmp_path / 'none'} (empty)"
