#!/usr/bin/env python3
"""Sends the records of a run to MLflow: `run.on_record` starts this program and writes the records to its standard input.

    pip install mlflow
    mlflow server --port 5000 &
    export MLFLOW_TRACKING_URI=http://127.0.0.1:5000
    codinet-train fashion_quick.yaml --set 'run.on_record=python3 examples/mlflow_records.py fashion_quick'

The argument names the run. Every number of a record becomes a metric KIND/NAME at the record's step and time. A start of this
program after an error goes on in the MLflow run of that name that has not ended.
"""

import datetime
import json
import sys

import mlflow
from mlflow.entities import Metric

POSITIONS = {"step", "seconds", "epoch", "samples", "images"}


def metrics(record):
    """The numbers of a record; a list's are numbered from 0."""
    timestamp = int(datetime.datetime.fromisoformat(record["time"]).timestamp() * 1000)
    for name, value in record.items():
        values = {f"{name}/{i}": item for i, item in enumerate(value)} if isinstance(value, list) else {name: value}
        for key, number in values.items():
            is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
            if is_number and name not in POSITIONS:
                yield Metric(f"{record['kind']}/{key}", float(number), timestamp, record["step"])


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else "codinet"
    client = mlflow.MlflowClient()
    experiment = mlflow.set_experiment("codinet").experiment_id
    found = client.search_runs([experiment], f"tags.mlflow.runName = '{name}' and attributes.status = 'RUNNING'")
    run = found[0] if found else client.create_run(experiment, run_name=name)
    for line in sys.stdin:
        client.log_batch(run.info.run_id, metrics=list(metrics(json.loads(line))))
    client.set_terminated(run.info.run_id)


if __name__ == "__main__":
    main()
