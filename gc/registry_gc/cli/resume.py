"""Whether a command finds its own run file from before, and goes on with it."""

from __future__ import annotations

from registry_gc.configuring.file import ConfigError
from registry_gc.events import Observer
from registry_gc.guard import Finding
from registry_gc.job import Job
from registry_gc.report.build import report_of_none
from registry_gc.report.model import Report
from registry_gc.runs.database import RunFileError
from registry_gc.runs.earlier import Found, found_at
from registry_gc.runs.plan_file import PlanFile, PlanRefused, no_plan, policy_facts


def is_stopped(job: Job, observer: Observer) -> bool:
    """Whether the job's run file is that of the same run, stopped on its way; says so.

    :raises ConfigError: it is one that was begun with other options.
    """
    if job.dry_run or found_at(job.run_file, job.storage) is not Found.STOPPED:
        return False
    plan = PlanFile.open(job.run_file)
    try:
        meta = plan.meta()
    finally:
        plan.close()
    wanted = policy_facts(job.policy)
    other = sorted(name for name, value in wanted.items() if meta.get(name) != value)
    if other:
        raise ConfigError(
            f"{job.run_file}: the run that was stopped had other options than this "
            f"({', '.join(other)}): go on with `registry-gc apply`, or name another --run-file"
        )
    observer.notice(f"going on with the run that was stopped: {job.run_file}")
    return True


def config_of(path: str) -> str:
    """The config file that the plan at *path* was made with.

    :raises ConfigError: it does not say.
    :raises RunFileError: *path* could not be read; a :class:`PlanRefused`: it is damaged, or no
        plan.
    """
    plan = PlanFile.open(path)
    try:
        meta = plan.meta()
    except (RunFileError, ValueError) as error:
        raise PlanRefused("plan-altered", f"{path}: damaged: {error}") from error
    finally:
        plan.close()
    if not meta.get("planned"):
        raise no_plan(path)  # whatever config it is of
    config = meta.get("config")
    if not isinstance(config, str):
        raise ConfigError(f"{path}: does not say which config it was made with: name --config")
    return config


def unread(path: str, error: RunFileError) -> Report:
    """What is told of a plan at *path* that cannot be read, so that its storage is not known."""
    if not isinstance(error, PlanRefused):
        return report_of_none(path, 1, str(error))
    finding = Finding(error.code, str(error))
    return report_of_none(path, 4, f"refused, nothing was deleted: {error}", [finding])
