"""The metrics that training logs, and the check of the config keys that name one of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from arcloop.config.signatures import read_signature

VAL_METRICS: Mapping[str, str] = {
    "val_map_at_r": "max", "val_top1": "max", "val_recall_at_5": "max", "val_eer": "min",
    "val_margin": "max",
}  # fmt: skip
"""Name of each metric of val -> "max" if a larger value is better, else "min"."""
METRICS: Mapping[str, str] = {**VAL_METRICS, "train_loss": "min"}
"""Name of each metric that `EmbeddingModule` logs -> "max" if a larger value is better, else "min".
"""
_OURS = ("arcloop.", "pytorch_lightning.")
_DEFAULT_MODE = "min"  # of the callbacks of Lightning


def find_monitor_faults(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a message for each key with an unknown metric, or with the wrong mode of a metric.

    The keys are `monitor`, and `monitor` of each callback.

    Args:
        config: The plain, resolved config; its `_target_` nodes have been checked.
    """
    callbacks = (config["callbacks"] or {}).items()
    nodes = {name: node for name, node in callbacks if isinstance(node, Mapping)}
    # A callback of the user may log other metrics.
    only_ours = all(str(node.get("_target_")).startswith(_OURS) for node in nodes.values())
    selecting = config["monitor"], config["monitor_mode"]
    found = {"": selecting}
    for name, node in nodes.items():
        if (monitor := node.get("monitor")) is not None:
            has_mode = "mode" in read_signature(str(node["_target_"])).parameters
            mode = node.get("mode", _DEFAULT_MODE) if has_mode else None
            if (monitor, mode) != selecting:  # otherwise it is the same fault
                found[f"callbacks.{name}."] = monitor, mode
    for prefix, (monitor, mode) in found.items():
        if monitor not in METRICS:
            if only_ours:
                near = difflib.get_close_matches(str(monitor), METRICS, n=2)
                hint = f"; did you mean {' or '.join(near)}?" if near else ""
                yield f"{prefix}monitor={monitor}: training logs only {', '.join(METRICS)}{hint}"
        elif mode is not None and mode != METRICS[monitor]:
            key = f"{prefix}mode" if prefix else "monitor_mode"
            better = "larger" if METRICS[monitor] == "max" else "smaller"
            yield f"{key}={mode}: a {better} {monitor} is better; set {key}={METRICS[monitor]}"
