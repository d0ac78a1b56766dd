from pathlib import Path

import pytest

from gateway.core.bundles import exported
from gateway.core.errors import InvalidRequest
from gateway.core.gates import Gate
from gateway.core.snapshot import EMPTY
from gateway.doors.bundle_files import Source, find_files, merged


def source(text: str, name: str = "a.yaml") -> Source:
    """A file in YAML."""
    return Source(name, text.encode(), "yaml")


def test_several_files_add_up() -> None:
    """Also two that speak of the same model's aliases."""
    bundle = merged(
        [
            source("schema: 1\naliases: {m: {champion: 1}}\ngates: {g: {schema: 1, models: [m]}}"),
            source("schema: 1\naliases: {m: {next: 2}, n: {champion: 1}}", "b.yaml"),
            Source("c.json", b'{"$schema": "x", "schema": 1, "endpoints": {}}', "json"),
        ]
    )
    assert bundle.aliases == {"m": {"champion": 1, "next": 2}, "n": {"champion": 1}}
    assert bundle.gates == {"g": Gate(schema=1, models=("m",))}
    assert bundle.endpoints == {}
    assert bundle.experiments is None


def test_a_table_without_entries_is_named_and_one_that_is_missing_is_not() -> None:
    """Pruning depends on it."""
    assert merged([source("schema: 1\ngates: {}")]).gates == {}
    assert merged([source("schema: 1")]) == exported(EMPTY)


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (
            ["schema: 1\nlayers: {l: {}}", "schema: 1\nlayers: {l: {}}"],
            r"^1.yaml: layers.l stands in 0.yaml already.$",
        ),
        (
            ["schema: 1\naliases: {m: {a: 1}}\n---\nschema: 1\naliases: {m: {a: 2}}"],
            r"^0.yaml \(document 2\): aliases.m.a stands in 0.yaml \(document 1\) already.$",
        ),
        (
            ["schema: 1\nholdout: {share: 1}", "schema: 1\nholdout: {share: 1}"],
            r"^1.yaml: holdout stands in 0.yaml already.$",
        ),
        (
            ["schema: 1\nendpoints: {e: {schema: 1, model: m, rules: [{name: 7}]}}"],
            r"^0.yaml: endpoints.e.rules\[0\].name: Expected `str`, got `int`.$",
        ),
        (
            ["schema: 1\nendpoints: {e: {schema: 1, model: m, rulez: []}}"],
            r"^0.yaml: endpoints.e: Object contains unknown field `rulez`.$",
        ),
        (["schema: 1\naliases: {m: {a: x}}"], "^0.yaml: aliases.m.a: Expected `int`"),
        (["schema: 1\naliases: {m: 1}"], "^0.yaml: aliases.m: Expected `object`"),
        (["schema: 1\ngates: [1]"], "^0.yaml: gates: Expected `object`"),
        (["schema: 1\nendpoint: {}"], "^0.yaml: there is no kind 'endpoint'"),
        (["layers: {}"], "^0.yaml: it has no schema; write 'schema: 1'"),
        (["schema: 2"], "^0.yaml: it has schema 2"),
        (["schema: 1\na: [", ""], "^0.yaml: it is no YAML"),
    ],
    ids=range(12),
)
def test_a_fault_is_told_with_file_document_and_field(texts: list[str], sentence: str) -> None:
    """Whoever wrote it finds it."""
    with pytest.raises(InvalidRequest, match=sentence):
        merged([source(text, f"{index}.yaml") for index, text in enumerate(texts)])


def test_a_folder_stands_for_its_bundles_sorted_by_name(tmp_path: Path) -> None:
    """Whatever else lies in it is passed over, folders too."""
    for name in ("b.toml", "a.yml", "c.json", "read.me", ".hidden.yaml"):
        (tmp_path / name).write_text("")
    (tmp_path / "d.yaml").mkdir()
    assert [file.name for file in find_files(tmp_path)] == ["a.yml", "b.toml", "c.json"]
    with pytest.raises(InvalidRequest, match=r"holds no file that ends in \.yaml"):
        find_files(tmp_path / "d.yaml")
