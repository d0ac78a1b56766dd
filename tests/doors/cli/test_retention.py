"""Commands on retention."""

import json
from pathlib import Path

from tests.doors.cli.desk import Desk, refused

DOCUMENT = {"schema": 1, "models": ["*"], "keep": 2}


def test_a_document_is_put_listed_and_deleted(desk: Desk, tmp_path: Path) -> None:
    """The list says in words what holds."""
    file = tmp_path / "keep.json"
    file.write_text(json.dumps(DOCUMENT))
    assert "Retention 'all' stands" in desk.run("retention", "put", "all", str(file)).stdout
    listed = desk.run("retention", "list").stdout
    assert all(word in listed for word in ("all", "30 days", "365 days", "no"))
    assert "is gone" in desk.run("retention", "delete", "all").stdout
    assert "every version stays" in desk.run("retention", "list").stdout
    refused(desk.run("retention", "delete", "all"), 1, "There is no retention 'all'")


def test_what_holds_each_version_is_said(desk: Desk, tmp_path: Path) -> None:
    """Looking and collecting show the same table; nothing that is served goes."""
    file = tmp_path / "keep.json"
    file.write_text(json.dumps(DOCUMENT))
    desk.run("retention", "put", "all", str(file))
    assert "it is served" in desk.run("retention", "look").stdout
    collected = desk.run("retention", "collect", "--reason", "tidy").stdout
    assert "0 versions are retired." in collected
    assert desk.json("retention", "look")["gone"] == []
