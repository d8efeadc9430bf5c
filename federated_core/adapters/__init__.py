"""Thin edges that both sides share: the MQTT link and the content-addressed blob store."""
