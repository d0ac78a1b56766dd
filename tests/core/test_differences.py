from typing import Any

import pytest

from gateway.core.differences import Difference, differences


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2}, [Difference("a", 1, 2)]),
        ({"a": {"b": 1}}, {"a": {}}, [Difference("a.b", 1, None)]),
        ({}, {"a": [1]}, [Difference("a", None, [1])]),
        ({"a": [1, 2]}, {"a": [2, 1]}, [Difference("a", [1, 2], [2, 1])]),
        (1, 2, [Difference("", 1, 2)]),
        (
            {"rules": [{"name": "x", "w": 1}, {"name": "y"}]},
            {"rules": [{"name": "x", "w": 2}, {"name": "z"}]},
            [
                Difference("rules.x.w", 1, 2),
                Difference("rules.y", {"name": "y"}, None),
                Difference("rules.z", None, {"name": "z"}),
            ],
        ),
        (
            {"rules": [{"name": "x"}, {"name": "y"}]},
            {"rules": [{"name": "y"}, {"name": "x"}]},
            [Difference("rules.(order)", ["x", "y"], ["y", "x"])],
        ),
        (
            {"a": [{"name": "x"}, {"name": "x"}]},
            {"a": [{"name": "x"}]},
            [Difference("a", [{"name": "x"}, {"name": "x"}], [{"name": "x"}])],
        ),
    ],
)
def test_each_place_that_differs_is_told(before: Any, after: Any, found: list[Difference]) -> None:
    """Things in lists go by their names where they have one each; their order is told too."""
    assert list(differences(before, after)) == found
