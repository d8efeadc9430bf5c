"""The conversation between a device and the aggregator: messages, bytes, topics, transfers."""
