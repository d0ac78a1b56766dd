"""Train a third version of `flight-delay`, for newcomers to register themselves.

It is version 2 on three more months. It lies where the gateway does not look for versions; with
`tiltyard register` it becomes one.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from _common import Trained, check_export, describe, out_folder, predict, score, session

MODEL = "flight-delay"
NUMBER = 3
MONTHS = range(1, 10)
HELD_OUT = range(10, 13)
GOLDEN_ROWS = 3
TOLERANCE = 1e-5


def scripts_of_model() -> ModuleType:
    """Return the script that trained the versions before: data, pipeline and export are its own."""
    spec = importlib.util.spec_from_file_location("flights", HERE.parent / MODEL / "train.py")
    if spec is None or spec.loader is None:
        raise ImportError(MODEL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(flights: ModuleType, table: pd.DataFrame) -> Trained:
    """Fit, export, check and measure."""
    rows, later = (flights.rows_of(table, months) for months in (MONTHS, HELD_OUT))
    inputs = [*flights.CATEGORIES, *flights.FEATURES]
    pipeline = flights.boosted()
    pipeline.fit(rows[inputs], flights.truth_of(rows))
    artifact = flights.export(pipeline)
    sample = later.sample(8_000, random_state=flights.SEED).reset_index(drop=True)
    for asked in (sample, flights.awkward(sample)):
        check_export(artifact, flights.feeds_of(asked), pipeline.predict_proba(asked[inputs]))
    return Trained(
        model=MODEL,
        number=NUMBER,
        artifact=artifact,
        metrics={
            "held_out": "October to December 2013",
            **score(artifact, flights.feeds_of(later), flights.truth_of(later)),
            "base_rate": round(float(flights.truth_of(later).mean()), 5),
        },
        parameters={
            "algorithm": "HistGradientBoostingClassifier",
            **flights.BOOSTING,
            "columns": [*flights.CATEGORIES, *flights.COLUMNS[2]],
        },
        lineage={
            **flights.lineage_of(rows, 2),
            "months": list(MONTHS),
            "parent": 2,
        },
        description="Gradient-boosted trees on January to September",
        seed=flights.SEED,
    )


def golden(flights: ModuleType, table: pd.DataFrame, artifact: bytes) -> str:
    """Return a few requests without a gap, with the answers of the artifact itself."""
    later = flights.rows_of(table, HELD_OUT)
    whole = later.loc[later[flights.FEATURES].notna().all(axis=1)]
    rows = whole.sample(GOLDEN_ROWS, random_state=flights.SEED).reset_index(drop=True)
    requests = []
    for place in range(GOLDEN_ROWS):
        feeds = flights.feeds_of(rows.iloc[place : place + 1])
        label, probabilities = predict(session(artifact), feeds)
        requests.append(
            {
                "name": str(rows["carrier"][place]) + str(rows["flight"][place]),
                "request": {
                    "inputs": [
                        {
                            "name": name,
                            "datatype": "FP32" if values.dtype == np.float32 else "BYTES",
                            "shape": list(values.shape),
                            "data": [_plain(value) for value in values.ravel().tolist()],
                        }
                        for name, values in feeds.items()
                    ]
                },
                "expected": {
                    "label": label.tolist(),
                    "probabilities": [[_plain(value) for value in row] for row in probabilities],
                },
                "absolute": TOLERANCE,
            }
        )
    return json.dumps({"schema": 1, "golden": requests}, indent=1) + "\n"


def _plain(value: str | float) -> str | float:
    """Return a number with the digits that 32 bits hold."""
    return value if isinstance(value, str) else float(f"{value:.9g}")


def main() -> None:
    """Train the candidate and write its folder."""
    out = out_folder(HERE.parent) / "candidates" / MODEL
    flights = scripts_of_model()
    table = flights.load()
    trained = train(flights, table)
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.onnx").write_bytes(trained.artifact)
    # Its number is given by whoever registers it.
    text = describe(trained, Path(__file__).resolve()).replace(f"number = {NUMBER}\n", "")
    (out / "version.toml").write_text(text, encoding="utf-8")
    (out / "golden.json").write_text(golden(flights, table, trained.artifact), encoding="utf-8")
    figures = ", ".join(f"{key} {value}" for key, value in trained.metrics.items())
    print(f"candidate for {MODEL}: {len(trained.artifact)} bytes; {figures}")


if __name__ == "__main__":
    main()
