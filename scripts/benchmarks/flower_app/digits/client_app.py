"""What a Flower client does in a round: one epoch on its own part of the digits."""

from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits import task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train for one epoch and reply with the new weights."""
    client, client_count = int(context.node_config["partition-id"]), int(context.run_config["clients"])
    images, labels = task.client_part(Path(str(context.run_config["data"])), client, client_count)
    parameters = task.train_epoch(message.content["arrays"].to_numpy_ndarrays(), images, labels)
    content = RecordDict({"arrays": ArrayRecord(parameters), "metrics": MetricRecord({"num-examples": len(labels)})})
    return Message(content=content, reply_to=message)
