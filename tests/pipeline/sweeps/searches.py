"""Searches whose jobs compute a formula, without training."""

from types import SimpleNamespace

import optuna
from optuna.samplers import TPESampler

from arcloop.pipeline.sweeps.pruning import STORAGE
from arcloop.pipeline.sweeps.search import Search

SPACE = [
    "name=x", "head.margin=interval(0.2,0.6)", "head.scale=16,32",
    "loader.batch_size=int(interval(1,9))",
]  # fmt: skip
CONDITIONAL = ["data=synthetic", "head.margin=interval(0.2,0.6)", "head=arcface,softmax"]


class Killed(BaseException):
    pass


class Jobs:
    """A launcher whose jobs compute a formula; records the overrides and the number of each job."""

    def __init__(self, kill_at=None, result=None):
        self.proposed, self.numbers, self.kill_at, self.result = [], [], kill_at, result

    def __call__(self, batch, initial_job_idx):
        returned = []
        for number, job in enumerate(batch, start=initial_job_idx):
            if len(self.proposed) == self.kill_at:
                raise Killed
            self.proposed.append(tuple(job))
            self.numbers.append(number)
            values = dict(override.split("=") for override in job)
            score = -((float(values.get("head.margin", 0.1)) - 0.4) ** 2)
            value = score if self.result is None else self.result(len(self.proposed), score)
            returned.append(SimpleNamespace(return_value=value))
        return returned


def search(
    folder, jobs, space=SPACE, sampler=TPESampler, verb="train", *, trials=6, at_once=1, **more
):
    settings = {"monitor": "val_top1", "direction": "max", "objective": "mean", **more}
    Search(sampler, trials=trials, seed=0, at_once=at_once, **settings).run(
        verb, space, str(folder), jobs
    )
    return jobs.proposed


def study(folder):
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / STORAGE}")


def states(folder):
    return [trial.state.name for trial in study(folder).trials]


def startup(seed):
    return TPESampler(seed=seed, n_startup_trials=3, multivariate=True, group=True)
