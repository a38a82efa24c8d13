"""Examples of alerts: rules that Prometheus would take, on metrics that Plant has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from runtime import metrics, settings
from tests.support import ROOT

_YAML: Final = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
_DURATION: Final = re.compile(r"(?:\d+(?:ms|[smhdwy]))+")
_METRIC: Final = re.compile(r"\bplant_\w+")
_SETTING: Final = re.compile(r"\bPLANT_\w+")
_LABELS: Final = re.compile(r"\$labels\.(\w+)")
_GROUPED: Final = re.compile(r"\bby \(([^)]*)\)")


def examples() -> list[tuple[str, str]]:
    """Pages with blocks of YAML that hold alerts, and those blocks."""
    pages = sorted((ROOT / "docs").rglob("*.md"))
    blocks = [(page, block) for page in pages for block in _YAML.findall(page.read_text("utf-8"))]
    return [(str(page.relative_to(ROOT)), block) for page, block in blocks if "alert:" in block]


def rules(text: str) -> list[dict[str, Any]]:
    """The rules of all groups."""
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def exposed() -> dict[str, set[str]]:
    """Each name of a sample that Plant's metrics have, with the labels of its metric."""
    names: dict[str, set[str]] = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            described = next(iter(metric.describe()))
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(described.type, ("",))
            names |= {described.name + suffix: set(metric._labelnames) for suffix in suffixes}
    return names


def test_there_is_an_example() -> None:
    """The search finds what it looks for."""
    assert "docs/runbooks/parked-entities.md" in [page for page, _ in examples()]


@pytest.mark.parametrize(("page", "text"), examples(), ids=lambda value: value if Path(str(value)).suffix else "")
def test_an_example_of_an_alert_is_one(page: str, text: str) -> None:
    """Each rule has a name, an expression on metrics that there are, and labels that its expression leaves."""
    names, found = exposed(), rules(text)
    assert found, page
    for rule in found:
        assert re.fullmatch(r"[A-Z]\w*", rule["alert"])
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert _DURATION.fullmatch(rule.get("for", "0s"))
        used = set(_METRIC.findall(rule["expr"]))
        assert used, rule["alert"]
        assert used <= names.keys(), f"{rule['alert']}: {used - names.keys()} is no metric"
        shown = " ".join(rule["annotations"].values())
        grouped = {each.strip() for part in _GROUPED.findall(rule["expr"]) for each in part.split(",")}
        assert grouped <= set.union(*(names[name] for name in used)), rule["alert"]
        assert set(_LABELS.findall(shown)) <= (grouped or set.union(*(names[name] for name in used))), rule["alert"]
        known = {f"PLANT_{name.upper()}" for name in settings.Settings.__struct_fields__}
        assert set(_SETTING.findall(shown)) <= known, rule["alert"]


def test_names_of_metrics_in_the_text_of_such_a_page_are_there() -> None:
    """Also outside of the rules."""
    for page, _ in examples():
        used = set(_METRIC.findall((ROOT / page).read_text("utf-8")))
        assert used <= exposed().keys(), page
