"""Recurring runs: the schedule in KFP's form, replacement, list, refresh and removal.

A recurring run names a pipeline version, and thereby an image. KFP stores the compiled workflow of
that version with the recurring run, so a new image needs a new recurring run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import kfp_server_api as api
from cronsim import CronSim, CronSimError

from arcloop.display.terminal import print_line, result_console
from arcloop.errors import ArcloopError, ConfigError, first_line
from arcloop.kfp.server.client import KfpClient

_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")


def kfp_schedule(schedule: str, timezone: str = "UTC") -> str:
    """Convert a cron schedule to the six fields of KFP: seconds first, weekdays by name.

    KFP numbers the weekdays from 0 to 6 and has no 7, so numbers and ranges become names.

    Args:
        schedule: Minute, hour, day of month, month and day of week. A prefix `CRON_TZ=ZONE` states
            the time zone and must be that of the server.
        timezone: Time zone of all schedules of the server.

    >>> kfp_schedule("0 0 * * 2")
    '0 0 0 * * TUE'
    >>> kfp_schedule("CRON_TZ=UTC */15 6-18 * * SAT-SUN")
    '0 */15 6-18 * * SUN,SAT'

    Raises:
        ConfigError: The schedule is not a cron schedule, or is in another time zone.
    """
    if found := re.match(r"\s*(?:CRON_)?TZ=(\S*)", schedule):
        if found[1] != timezone:
            raise ConfigError(
                f"schedule={schedule!r} is in the time zone {found[1]}, but a KFP server has one "
                f"time zone for all schedules, which is {timezone}",
                where="cluster.timezone",
                remedy=f"convert the schedule to {timezone}, or set CRON_SCHEDULE_TIMEZONE of the "
                "server's ml-pipeline-scheduledworkflow and cluster.timezone",
            )
        schedule = schedule[found.end() :]
    fields = re.sub(r"-SUN\b", "-7", schedule.upper()).split()  # at the end of a range, SUN is 7
    try:
        if len(fields) != 5:
            raise CronSimError("it needs five fields: minute hour day month weekday")
        if found := re.search(r"[L#]", " ".join([fields[2], fields[4]]).replace("JUL", "")):
            raise CronSimError(f"KFP does not support {found[0]}")
        days = CronSim(" ".join(fields), datetime.now(UTC)).weekdays
    except CronSimError as cause:
        raise ConfigError(
            f"schedule={schedule!r} is not a cron schedule: {cause}",
            remedy="write it as in crontab, e.g. schedule='0 0 * * 2' for Tuesday at midnight",
        ) from None
    if not fields[4].startswith("*"):
        numbers = sorted({day % 7 for day in days if isinstance(day, int)})
        fields[4] = ",".join(_WEEKDAYS[number] for number in numbers)
    return " ".join(["0", *fields])


def start_schedule(client: KfpClient, fields: Mapping[str, Any], cron: str) -> None:
    """Create a recurring run in place of those of the same name, and print what changed.

    Args:
        client: The server.
        fields: Fields of the runs, see `KfpClient.run_fields`.
        cron: The schedule, as from `kfp_schedule`.

    Raises:
        ArcloopError: The server refuses or does not answer.
    """
    earlier = [run for run in _recurring_runs(client) if run.display_name == fields["display_name"]]
    trigger = api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=cron))
    _replace(client, fields, trigger, api.RecurringRunMode.ENABLE, earlier)


def refresh_schedules(client: KfpClient, version: Any, description: str) -> None:
    """Move the recurring runs of the pipeline to a pipeline version; they keep their parameters.

    A recurring run without parameters is not moved, because it would get those of this command.

    Args:
        client: The server.
        version: The pipeline version.
        description: The new description.

    Raises:
        ArcloopError: The server refuses or does not answer for some of them; the others were moved.
    """
    faults = []
    for run in list(_recurring_runs(client)):
        if run.pipeline_version_reference.pipeline_version_id == version.pipeline_version_id:
            print_line(f"{run.display_name}: up to date")
            continue
        if not _parameters(run):  # the default values of the new version are those of this command
            print_line(f"{run.display_name}: kept, because it has no parameters of its own")
            continue
        try:
            fields = client.run_fields(version, _parameters(run), run.display_name, description)
            _replace(client, fields, run.trigger, run.mode, [run])
        except ArcloopError as cause:
            faults.append(f"the schedule {run.display_name} was not replaced: {first_line(cause)}")
    if faults:
        raise ArcloopError(
            "\n".join(faults),
            where=client.settings.host,
            remedy="submit it again with schedule= and its overrides",
        )


def list_schedules(client: KfpClient) -> None:
    """Print name, schedule, state, next run, version and image of the pipeline's recurring runs."""
    console, timezone = result_console(), client.settings.timezone
    for run in _recurring_runs(client):
        cron = _cron(run.trigger)
        state = "enabled" if run.mode == api.RecurringRunMode.ENABLE else "disabled"
        if state == "enabled" and (upcoming := _next_run(cron, _zone(timezone))):
            state += f", next run {upcoming:%Y-%m-%d %H:%M}"
        image = re.search(r"^image: .*", run.description or "", flags=re.MULTILINE)
        console.print(f"{run.display_name}: {cron} {timezone}, {state}", soft_wrap=True)
        console.print(f"  version: {_version_name(client, run)}", soft_wrap=True)
        console.print(f"  {image[0] if image else 'image: unknown'}", soft_wrap=True)


def remove_schedule(client: KfpClient, name: str) -> None:
    """Delete the recurring runs of this name. A run that has started continues.

    Raises:
        ArcloopError: There is none, or the server refuses or does not answer.
    """
    runs = list(_recurring_runs(client))
    found = [run for run in runs if run.display_name == name]
    if not found:
        names = ", ".join(sorted({run.display_name for run in runs})) or "none"
        raise ArcloopError(f"there is no schedule {name}", remedy=f"choose one of: {names}")
    for run in found:
        _delete(client, run)
        print_line(f"removed the schedule {name}: {_cron(run.trigger)}")


def _recurring_runs(client: KfpClient) -> Iterator[Any]:
    """Yield the recurring runs of the pipeline in the experiment of the settings."""
    pipeline, experiment = client.pipeline(), client.experiment()
    if pipeline is None or experiment is None:
        return
    method = client.recurring.recurring_run_service_list_recurring_runs
    for page in client.pages(method, experiment_id=experiment.experiment_id):
        for run in page.recurring_runs or []:
            reference = run.pipeline_version_reference
            if reference and reference.pipeline_id == pipeline.pipeline_id:
                yield run


def _replace(
    client: KfpClient, fields: Mapping[str, Any], trigger: Any, mode: str, earlier: list[Any]
) -> None:
    """Create a recurring run, and delete the earlier ones once it exists."""
    recurring = api.V2beta1RecurringRun(
        **fields, mode=mode, max_concurrency=1, no_catchup=True, trigger=trigger
    )
    create = client.recurring.recurring_run_service_create_recurring_run
    made = client.call(create, recurring)
    print_line(f"recurring run: {made.recurring_run_id}, {_cron(trigger)}")
    for run in earlier:
        _delete(client, run)
        print_line(f"replaces the recurring run {run.recurring_run_id}")
        for change in _changes(client, run, recurring):
            print_line(f"  {change}")


def _delete(client: KfpClient, run: Any) -> None:
    """Delete a recurring run; by default, Kubernetes would delete its active runs as well."""
    client.call(
        client.recurring.recurring_run_service_delete_recurring_run,
        run.recurring_run_id,
        propagation_policy=api.V2beta1DeletePropagationPolicy.ORPHAN,
    )


def _changes(client: KfpClient, old: Any, new: Any) -> Iterator[str]:
    """Yield the differences between two recurring runs."""
    if (before := _cron(old.trigger)) != (after := _cron(new.trigger)):
        yield f"schedule: {before} -> {after}"
    if old.pipeline_version_reference != new.pipeline_version_reference:
        yield f"version: {_version_name(client, old)} -> {_version_name(client, new)}"
    earlier, parameters = _parameters(old), _parameters(new)
    for name in sorted(earlier.keys() | parameters.keys()):
        if earlier.get(name) != parameters.get(name):
            yield f"{name}: {earlier.get(name)} -> {parameters.get(name)}"


def _parameters(run: Any) -> dict[str, Any]:
    return (run.runtime_config and run.runtime_config.parameters) or {}


def _version_name(client: KfpClient, run: Any) -> str:
    reference = run.pipeline_version_reference
    if not reference.pipeline_version_id:
        return "the latest"
    get = client.pipelines.pipeline_service_get_pipeline_version
    try:
        version = client.call(get, reference.pipeline_id, reference.pipeline_version_id)
    except ArcloopError:  # it was deleted
        return str(reference.pipeline_version_id)
    return str(version.display_name)


def _cron(trigger: Any) -> str:
    """Return the schedule of a trigger. KFP's UI can also create intervals."""
    if trigger and trigger.cron_schedule:
        return str(trigger.cron_schedule.cron)
    interval = trigger.periodic_schedule.interval_second if trigger else None
    return f"every {interval} s" if interval else "no schedule"


def _zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else ZoneInfo(name)  # UTC needs no database of time zones


def _next_run(cron: str, zone: tzinfo) -> datetime | None:
    try:
        return next(CronSim(cron, datetime.now(zone)), None)
    except CronSimError:
        return None
