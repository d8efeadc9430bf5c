"""What both sides must agree on: true without a clock, a disk or a network (its ``adapters`` excepted)."""

VERSION = "0.1.0"
