"""MQTT brokers that the aggregator runs or administers: who may log in, and what each may publish and hear."""
