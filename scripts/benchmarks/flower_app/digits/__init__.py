"""The digits task as a Flower app."""
