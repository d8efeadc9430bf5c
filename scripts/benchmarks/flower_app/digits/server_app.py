"""FedAvg over all clients; writes when each round ended and what the model then knew."""

import json
import time
from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from digits import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds that the run's configuration asks for."""
    client_count, events = int(context.run_config["clients"]), Path(str(context.run_config["events"]))
    images, labels = task.held_out(Path(str(context.run_config["data"])))

    def note(round_number: int, arrays: ArrayRecord) -> MetricRecord:
        reached = task.accuracy(arrays.to_numpy_ndarrays(), images, labels)
        with events.open("a") as file:
            file.write(json.dumps({"round": round_number, "at_s": time.monotonic(), "accuracy": reached}) + "\n")
        return MetricRecord({"accuracy": reached})

    strategy = FedAvg(
        fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=client_count, min_available_nodes=client_count
    )
    initial = ArrayRecord(task.initial_parameters())
    strategy.start(grid, initial, num_rounds=int(context.run_config["rounds"]), evaluate_fn=note)
