"""A round of four devices with small numbers: heads, candidates, reports."""

import hashlib

from cloud_aggregator.selection import Candidate
from cloud_aggregator.training_round import Accepted, RoundHead, RoundSettings
from federated_core.protocol.messages import BlobReference, Metrics, Plan, PlanKind, Report

BASE = hashlib.sha256(b"base").digest()
# Goal 3 of a cohort of ceil(3 * 1.3) = 4; with fewer than 2 reports the round is abandoned.
SETTINGS = RoundSettings(
    goal=3,
    report_count_min=2,
    overselection_ratio=1.3,
    selection_s=30.0,
    reporting_s=600.0,
    update_bytes_max=2000,
)
COHORT = ("a", "b", "c", "d")


def head_of(kind: PlanKind = "train", settings: RoundSettings = SETTINGS) -> RoundHead:
    plan = Plan(kind, example_count_min=10, example_count_max=100)
    return RoundHead("task", 7, plan, base_version=3, base=BASE, seed=bytes(32), settings=settings)


HEAD = head_of()


def candidate_of(device: str, attempt: int = 1) -> Candidate:
    return Candidate(device, f"check-in {device}{attempt}".encode())


def report_of(device: str, example_count: int = 40, kind: PlanKind = "train") -> Report:
    update = BlobReference(hashlib.sha256(device.encode()).digest(), 1000) if kind == "train" else None
    return Report("task", 7, kind, BASE, example_count, Metrics(10, 7, 3.5), update, 0.25, 1.5)


def accepted_of(device: str) -> Accepted:
    report = report_of(device)
    assert report.update is not None
    return Accepted(device, 40, report.metrics, report.update.digest, 0.25, 1.5)
