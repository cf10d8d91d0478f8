"""The table of steps -> KFP components.

kfp takes a component from the source of a function with annotated parameters. That source is made
here from a step's row in `STEPS`: a parameter for each group it reads, an input for each artifact
it takes, an output for the one it makes; the body is a call of `arcloop.pipeline.steps.run_step`.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kfp import dsl

from arcloop.kfp import in_the_pod
from arcloop.kfp.parameters import DEPLOY_READS
from arcloop.pipeline.steps import STEPS, Step

_TYPES = {
    "store": "Dataset", "validation": "Artifact", "run": "Model", "gallery": "Dataset",
    "index": "Model", "evaluation": "Artifact",
}  # fmt: skip
DEPLOY = Step("deploy", DEPLOY_READS, ("run", "gallery", "index", "evaluation"), "")


@dataclass(frozen=True)
class _Extra:
    """What a step's component has beyond its row.

    Attributes:
        outputs: Parameter -> annotation of what it shows in KFP's UI.
        ending: Lines after the step itself.
        returns: Annotation of what it returns.
        inputs: Parameters that are neither overrides nor artifacts.
    """

    outputs: Mapping[str, str] | None = None
    ending: Sequence[str] = ()
    returns: str = "None"
    inputs: Mapping[str, str] | None = None


_EXTRA = {
    # A changed source is another value of `fingerprint`, hence another entry of the cache.
    "prepare": _Extra(inputs={"fingerprint": "str"}),
    "validate": _Extra({"report": "HTML"}, ("show_page(validation_out, report)",)),
    "evaluate": _Extra(
        {
            "report": "HTML", "metrics": "Metrics", "confusion": "ClassificationMetrics",
            "roc": "ClassificationMetrics", "summary": "Markdown",
        },
        (
            "show_page(evaluation_out, report)",
            "show_evaluation(evaluation_out, metrics, confusion, roc, summary)",
            "return passed(evaluation_out)",
        ),
        "bool",
    ),
}  # fmt: skip


def step_component(name: str, image: str) -> Any:
    """Return the KFP component of a step, in an image."""
    step, extra = STEPS[name], _EXTRA.get(name, _Extra())
    output = f"{step.output}_out"
    body = f'run_on("{name}", {_groups(step)}, {_roles(step)}, {output})'
    parameters = _parameters(step, {output: _TYPES[step.output], **(extra.outputs or {})}, extra)
    return _component(name, parameters, [body, *extra.ending], extra.returns, image)


def trainjob_component(image: str) -> Any:
    """Return the component that has a TrainJob train; it takes the job's settings as JSON."""
    step = STEPS["train"]
    parameters = _parameters(step, {"run_out": "Model"}, _Extra(inputs={"settings": "str"}))
    body = f"train_on_nodes({_groups(step)}, store, run_out, settings)"
    return _component("train", parameters, [body], "None", image)


def deploy_component(image: str) -> Any:
    """Return the component that calls serving/deploy.py."""
    body = f"deploy_on({_groups(DEPLOY)}, {_roles(DEPLOY)})"
    return _component("deploy", _parameters(DEPLOY, {}, _Extra()), [body], "None", image)


def look_component(image: str) -> Any:
    """Return the component that tells the fingerprint of the source, never cached."""
    step = Step("look", STEPS["prepare"].reads, (), "")
    body = f"return fingerprint_of({_groups(step)})"
    return _component("look", _parameters(step, {}, _Extra()), [body], "str", image)


def tell_component(image: str) -> Any:
    """Return the component that posts a run's result and what became of it."""
    parameters = [
        "webhook_env: str", "timeout_s: float", "verdict: str", "run_name: str",
        "evaluation: Input[Artifact]",
    ]  # fmt: skip
    body = "post(webhook_env, timeout_s, result_text(run_name, verdict, evaluation))"
    return _component("tell", parameters, [body], "None", image)


def tell_failure_component(image: str) -> Any:
    """Return the exit task's component: it posts when a run ended with an error."""
    parameters = [
        "webhook_env: str", "timeout_s: float", "run_name: str", "status: PipelineTaskFinalStatus",
    ]  # fmt: skip
    body = [
        'if status.state != "SUCCEEDED":',
        "    post(webhook_env, timeout_s, failure_text(run_name, status.error_message))",
    ]
    return _component("tell_failure", parameters, body, "None", image)


def _groups(step: Step) -> str:
    return f"[{', '.join(f'{name}_overrides' for name in step.reads)}]"


def _roles(step: Step) -> str:
    return "{" + ", ".join(f'"{role}": {role}' for role in step.inputs) + "}"


def _parameters(step: Step, outputs: Mapping[str, str], extra: _Extra) -> list[str]:
    return [
        *(f"{name}_overrides: List[str]" for name in step.reads),
        *(f"{name}: {kind}" for name, kind in (extra.inputs or {}).items()),
        *(f"{role}: Input[{_TYPES[role]}]" for role in step.inputs),
        *(f"{name}: Output[{kind}]" for name, kind in outputs.items()),
    ]


def _component(
    name: str, parameters: Sequence[str], body: Sequence[str], returns: str, image: str
) -> Any:
    lines = [
        f"def {name}(",
        *(f"    {parameter}," for parameter in parameters),
        f") -> {returns}:",
        *(f"    {line}" for line in body),
    ]
    function = _function(name, "\n".join(lines) + "\n")
    used = [f for f in _SHARED if any(f"{f.__name__}(" in line for line in body)]
    if in_the_pod.run_on in used or in_the_pod.train_on_nodes in used:
        used.insert(0, in_the_pod.place)
    return dsl.component(
        function, base_image=image, install_kfp_package=False, additional_funcs=used
    )


_SHARED: Sequence[Callable[..., Any]] = (
    in_the_pod.run_on, in_the_pod.train_on_nodes, in_the_pod.deploy_on, in_the_pod.fingerprint_of,
    in_the_pod.show_page, in_the_pod.show_evaluation, in_the_pod.passed, in_the_pod.post,
    in_the_pod.result_text, in_the_pod.failure_text,
)  # fmt: skip


def _function(name: str, source: str) -> Callable[..., Any]:
    """Make a function of its source, and let `inspect`, through which kfp reads it, find that."""
    file = f"<component {name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    names: dict[str, Any] = {}
    exec("from typing import *\nfrom kfp.dsl import *", names)  # noqa: S102 - as kfp does
    code = compile(source, file, "exec", dont_inherit=True)  # annotations stay objects
    exec(code, names)  # noqa: S102 - our own text, from our own table
    function: Callable[..., Any] = names[name]
    return function
