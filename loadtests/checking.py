"""Right or wrong: an answer must be exactly one version's output for its input, under its name."""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np

from loadtests.requests import BODIES, agree, answered, expected, rows

MAX_KNOWN: Final = 50_000


class Check:
    """Judges answers in the Open Inference Protocol; an answer seen before costs one look-up."""

    def __init__(self, wanted: dict[str, list[dict[str, Any]]]) -> None:
        """Keep what each version answers to each of the plan's inputs."""
        self._wanted = wanted
        self._known: dict[tuple[int, bytes], bool] = {}

    def right(self, request: int, head: bytes, body: bytes) -> bool:
        """Whether the answer is that of the version that it names."""
        del head
        key = (request % BODIES, body)
        found = self._known.get(key)
        if found is None:
            found = self._judge(*key)
            if len(self._known) < MAX_KNOWN:
                self._known[key] = found
        return found

    def _judge(self, number: int, body: bytes) -> bool:
        try:
            document = json.loads(body)
            wanted = self._wanted[document["model_version"]][number]
            return agree(answered("oip", {}, body), wanted)
        except (ValueError, KeyError, TypeError):
            return False

    @classmethod
    def read(cls, path: Path) -> "Check":
        """What `write` wrote."""
        document = json.loads(path.read_text())
        return cls(
            {
                version: [
                    {name: np.asarray(value) for name, value in answer.items()}
                    for answer in answers
                ]
                for version, answers in document.items()
            }
        )


def write(path: Path, store: Path, model: str) -> Path:
    """Write what both versions of a model answer to the plan's inputs."""
    document = {
        version: [
            {name: value.tolist() for name, value in answer.items()}
            for answer in expected(store / model / version / "model.onnx", rows(model))
        ]
        for version in ("1", "2")
    }
    path.write_text(json.dumps(document))
    return path
