"""The command that writes a model card."""

from pathlib import Path

from tests.doors.cli.desk import Desk, refused
from tests.doors.http.admin_world import MODEL


def test_a_card_is_printed_or_written(desk: Desk, tmp_path: Path) -> None:
    """Markdown by default; the suffix of a file says what it is to be."""
    assert desk.run("models", "card", MODEL, "1").stdout.startswith(f"# {MODEL}, version 1\n")
    for name, start in (("card.md", "# "), ("card.html", "<!doctype html>")):
        file = tmp_path / name
        assert "is in" in desk.run("models", "card", MODEL, "1", str(file)).stdout
        assert file.read_text().startswith(start)
    assert desk.json("models", "card", MODEL, "1")["number"] == 1


def test_a_card_in_another_form_is_refused(desk: Desk, tmp_path: Path) -> None:
    """Nothing is written."""
    file = tmp_path / "card.pdf"
    refused(desk.run("models", "card", MODEL, "1", str(file)), 1, "'.pdf' is neither")
    assert not file.exists()
