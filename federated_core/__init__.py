"""What both sides must agree on: true without a clock, a disk or a network (its ``adapters`` excepted)."""
