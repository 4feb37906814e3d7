"""Whether a command finds its own run file from before, and goes on with it."""

from __future__ import annotations

from registry_gc.config_file import ConfigError
from registry_gc.events import Observer
from registry_gc.run_file import RunFileError
from registry_gc.runs.plan_file import Found, PlanFile, found_at, policy_facts
from registry_gc.session import Job


def is_stopped(job: Job, observer: Observer) -> bool:
    """Whether the job's run file is that of the same run, stopped on its way; says so.

    :raises ConfigError: it is one that was begun with other options.
    """
    if job.dry_run or found_at(job.run_file) is not Found.STOPPED:
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

    :raises ConfigError: *path* is no plan, or does not say.
    """
    try:
        plan = PlanFile.open(path)
        try:
            config = plan.meta().get("config")
        finally:
            plan.close()
    except (RunFileError, ValueError) as error:
        raise ConfigError(str(error)) from error
    if not isinstance(config, str):
        raise ConfigError(f"{path}: does not say which config it was made with: name --config")
    return config
