"""One sweep from spec to champion: lanes start while pictures are packed, Ray Tune searches, the winner is tested.

In: a ``SweepSpec``. Out: a ``SweepResult``, a journal, runs and a model in MLflow. A sweep that was interrupted goes on
from its journal by ``resume_sweep``.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from search_spaces.loading import dump_spec, load_spec
from search_spaces.space import SearchSpace
from search_spaces.spec import SweepSpec
from trainables.config import TrialConfig, WeightsFile
from trainables.errors import InputError
from trainables.jobs import TrainJob
from trainables.storage import write_bytes
from tuner.champion import choose_champion, why_none
from tuner.journal import Journal, Record, read_records, trials_of
from tuner.lanes import LanePool
from tuner.paths import HomePaths
from tuner.preparing import PreparedData, base_trial, build_cuts, check_quickly, prepare_data, prepare_weights
from tuner.pretraining import Pretrained, Pretraining, find_pretrained, prepare_pretraining, train_backbone
from tuner.progress import Progress, silent
from tuner.result import Champion, Standing, SweepResult
from tuner.tracking import Tracking

MLFLOW_PATIENCE_S = 30.0
"""How long the end of a sweep waits for an MLflow that is away."""


class SweepFailedError(RuntimeError):
    """Every trial failed; the message says why."""


def run_sweep(
    spec: SweepSpec, *, home: str | Path | HomePaths | None = None, progress: Progress | None = None
) -> SweepResult:
    """Runs a new sweep to its end, or to the first Ctrl-C.

    Args:
        spec: What to search.
        home: Where everything is written; default ``THAW_HOME``, else ``~/.thaw``.
        progress: Shows what happens; default nothing.

    Raises:
        InputError: The spec or its surroundings will not do; nothing was trained.
        SweepFailedError: Every trial failed.
    """
    paths = _home(home)
    _refuse_used_name(spec.name, paths)
    return _Sweep(spec, paths, progress or silent()).run()


def resume_sweep(
    name: str, *, home: str | Path | HomePaths | None = None, progress: Progress | None = None
) -> SweepResult:
    """Goes on with a sweep that was interrupted, from its journal.

    Raises:
        InputError: There is no such sweep, or it is finished.
        SweepFailedError: Every trial failed.
    """
    paths = _home(home)
    if name not in paths.sweep_names():
        known = ", ".join(paths.sweep_names()) or "none"
        raise InputError(f"resume: there is no sweep {name!r} in {paths.root}; there are: {known}")
    records = read_records(paths.sweep(name).journal)
    if any(record["event"] == "finished" for record in records):
        raise InputError(f"resume: sweep {name!r} is finished; `thaw trials {name}` shows it")
    spec = load_spec(paths.sweep(name).spec)
    return _Sweep(spec, paths, progress or silent(), records).run()


def free_name(name: str, home: HomePaths) -> str:
    """``name``, or the first of ``name-2``, ``name-3``... that no sweep has."""
    taken, number, candidate = set(home.sweep_names()), 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def _home(home: str | Path | HomePaths | None) -> HomePaths:
    if isinstance(home, HomePaths):
        return home
    return HomePaths.from_env() if home is None else HomePaths.at(home)


def _refuse_used_name(name: str, home: HomePaths) -> None:
    if name not in home.sweep_names():
        return
    records = read_records(home.sweep(name).journal)
    if any(record["event"] == "finished" for record in records):
        raise InputError(f"name: sweep {name!r} exists and is finished; give another (--set name=...) or add --new")
    raise InputError(f"name: sweep {name!r} exists and is unfinished; `thaw resume {name}`, or give another name")


class _Sweep:
    """One run of one sweep; its methods are its phases, in order."""

    def __init__(self, spec: SweepSpec, home: HomePaths, progress: Progress, past: list[Record] | None = None) -> None:
        self.spec, self.home, self.progress = spec, home, progress
        self.past = past or []
        self.is_resumed = past is not None
        self.paths = home.sweep(spec.name)
        self.tracking_uri = home.tracking_uri(spec.tracking.uri)
        self.tracking = Tracking.for_sweep(home, spec.name, self.tracking_uri)
        self.started = time.monotonic()
        self.journal: Journal | None = None
        self.pretrained: tuple[Pretraining, Pretrained] | None = None

    def run(self) -> SweepResult:
        """All phases."""
        check_quickly(self.spec)
        with ExitStack() as stack:
            executor = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="prepare"))
            preparing = executor.submit(self._prepare)
            pool = stack.enter_context(self._lanes(preparing))
            data, pretraining, weights = preparing.result()
            space = self._check_space(data)
            self.journal = stack.enter_context(Journal.open(self.paths.journal))
            self._begin(data)
            if pretraining is not None:
                weights = self._pretrain(pretraining, pool)
            base = base_trial(self.spec, data.config, weights)
            is_whole = self._search(space, base, pool)
            if not is_whole:
                return self._interrupted()
            return self._finish(space, base, data, pool)

    # --- before ----------------------------------------------------------------------------------------------

    @contextmanager
    def _lanes(self, preparing: Future[Any]) -> Iterator[LanePool]:
        """Ray and the lanes, started while the rest is prepared; ended whatever happens."""
        import ray

        from tuner.cluster import choose_shape, start_ray, stop_ray

        self.progress.phase("starting Ray")
        is_ours = start_ray()
        pool: LanePool | None = None
        try:
            if preparing.done():
                preparing.result()
            budget = self.spec.budget
            shape, num_lanes = choose_shape(budget, budget.concurrency, ray.cluster_resources())
            num_lanes = min(num_lanes, self.spec.search.num_trials)
            self.progress.num_lanes = num_lanes
            pool = LanePool(shape, num_lanes, self.home.uri_of(self.paths.ray))
            pool.start()
            self.progress.phase(f"starting {num_lanes} lane(s) of {shape.num_workers} worker(s)")
            yield pool
        finally:
            if pool is not None:
                pool.close()
            if is_ours:
                stop_ray()

    def _prepare(self) -> tuple[PreparedData, Pretraining | None, WeightsFile | None]:
        """Packs pictures, checks weights: all that needs no lane."""
        spec = self.spec
        data = prepare_data(spec.data, self.home, self.progress.counted)
        pretrain = spec.pretrain_spec()
        if pretrain is None:
            assert isinstance(spec.model.weights, str)
            weights = prepare_weights(spec.model.weights, spec.model.backbone, self.home, self.tracking_uri)
            return data, None, weights
        return data, prepare_pretraining(pretrain, self.home, self.tracking_uri, self.progress.counted), None

    def _check_space(self, data: PreparedData) -> SearchSpace:
        cuts = build_cuts(self.spec.model.backbone, len(data.config.class_names), data.config.image_size_px)
        return SearchSpace(self.spec.search, cuts.num_stages, self.spec.model.backbone)

    def _begin(self, data: PreparedData) -> None:
        for bad in data.report.bad_files[:5]:
            self.progress.note(f"set aside: {bad.name}: {bad.reason}", style="yellow")
        if not self.is_resumed:
            write_bytes(str(self.paths.spec), dump_spec(self.spec).encode())
        self.record("sweep", name=self.spec.name, params=_summary(self.spec, data), tags={}, note="")
        self.record("files", paths=[str(self.paths.spec)])

    def record(self, event: Any, **fields: Any) -> None:
        """Writes the journal and shows the record; MLflow is told from the first epoch on."""
        assert self.journal is not None
        written = self.journal.append(event, **fields)
        self.progress.see(written)
        if event == "epoch":
            self.tracking.start()

    # --- pretraining and search ------------------------------------------------------------------------------

    def _pretrain(self, pretraining: Pretraining, pool: LanePool) -> WeightsFile:
        name = pretraining.spec.name
        found = find_pretrained(pretraining, self.home, self.tracking_uri)
        if found is None:
            self.progress.phase(f"pretraining {name}")
            epochs = pretraining.spec.epochs
            found = train_backbone(
                pretraining,
                self.home,
                pool,
                lambda epoch, _: self.progress.counted(f"pretraining {name}", epoch, epochs),
            )
        self.pretrained = (pretraining, found)
        return found.weights

    def _search(self, space: SearchSpace, base: TrialConfig, pool: LanePool) -> bool:
        """Runs the trials that are left; False when the sweep was interrupted."""
        from tuner.searching import StudySearcher
        from tuner.tuning import StopSwitch, run_tune

        spec, switch = self.spec, StopSwitch(self.spec.budget.time_budget_s)
        history = trials_of(self._close_overdue())
        if sum(trial.outcome is not None for trial in history) >= spec.search.num_trials:
            return True
        known_epochs = {trial.number: len(trial.epochs) for trial in history}
        switchboard = {"switchboard": pool.name, "namespace": pool.namespace}
        home, paths = self.home, self.paths

        def make_config(number: int, params: dict[str, Any]) -> dict[str, Any]:
            job = TrainJob(
                config=space.trial_config(params, base),
                directory=home.uri_of(paths.trial(number).root),
                metric=spec.metric,
                mode=spec.mode,
                reported_epochs=known_epochs.get(number, 0),
            )
            return {**switchboard, "params": params, "job": job.model_dump(mode="json")}

        searcher = StudySearcher(
            space,
            metric=spec.metric,
            mode=spec.mode,
            num_trials=spec.search.num_trials,
            max_concurrent=pool.num_lanes,
            seed=spec.seed,
            make_config=make_config,
            history=history,
        )
        state = self.progress.state
        state.metric, state.mode = spec.metric, spec.mode
        state.num_trials, state.max_epochs = spec.search.num_trials, spec.budget.epochs
        self.progress.phase("waiting for the first lane")
        with _first_interrupt_calls(switch.interrupt, self.progress):
            run_tune(
                searcher=searcher,
                scheduler=self._scheduler(history),
                pool=pool,
                switch=switch,
                record=self.record,
                storage=self.home.uri_of(self.paths.ray),
            )
        return not switch.is_interrupted

    def _scheduler(self, history: Any) -> Any:
        from ray.tune.schedulers import FIFOScheduler

        from tuner.searching import ResumableASHA

        spec = self.spec
        if spec.early_stopping.scheduler == "none":
            return FIFOScheduler()
        return ResumableASHA(
            metric=spec.metric,
            mode=spec.mode,
            max_epochs=spec.budget.epochs,
            grace_period=spec.grace_period,
            reduction_factor=spec.early_stopping.reduction_factor,
            history=history,
        )

    def _close_overdue(self) -> list[Record]:
        """Ends what an interruption left open though its last epoch had decided it; returns all records."""
        history = trials_of(self._records())
        scheduler = self._scheduler(history)
        for trial in history:
            if trial.outcome is None and len(trial.epochs) >= self.spec.budget.epochs:
                self.record("end", number=trial.number, outcome="completed", reason=None)
            elif trial.number in getattr(scheduler, "overdue", ()):
                self.record(
                    "end", number=trial.number, outcome="stopped_early", reason="decided before the interruption"
                )
        return self._records()

    def _records(self) -> list[Record]:
        return read_records(self.paths.journal)

    # --- after -----------------------------------------------------------------------------------------------

    def _interrupted(self) -> SweepResult:
        self.record("interrupted", reason="interrupted by the user")
        untold = self.tracking.close(MLFLOW_PATIENCE_S)
        return self._result(None, [], is_finished=False, untold=untold)

    def _finish(self, space: SearchSpace, base: TrialConfig, data: PreparedData, pool: LanePool) -> SweepResult:
        from tuner.finale import Closing, run_baselines, test_champion, write_champion, write_report

        self.tracking.start()
        trials = trials_of(self._records())
        best = choose_champion(trials, self.spec.metric, self.spec.mode)
        if best is None:
            reason = why_none(trials)
            self.record("finished", outcome="failed", reason=reason)
            self.tracking.close(MLFLOW_PATIENCE_S)
            raise SweepFailedError(f"no trial of sweep {self.spec.name!r} succeeded: {reason}")
        closing = Closing(self.spec, self.home, data, pool, self.record, self.progress.phase)
        champion, confusion = test_champion(closing, best, space.trial_config(best.params, base))
        baselines = run_baselines(closing, champion, space.num_stages)
        self.progress.phase("writing the champion's model")
        write_champion(closing, champion)
        if confusion is not None:
            self.record("files", paths=write_report(closing, champion, confusion), folder="report")
        self.record(
            "champion", number=champion.number, metrics=_flat(champion.standing), note=_note(champion, baselines)
        )
        champion = self._register(closing, champion)
        if champion.model_uri is None:
            self.record("interrupted", reason="MLflow is away: the champion is not registered")
        else:
            self.record("finished", outcome="completed", reason=None)
        untold = self.tracking.close(MLFLOW_PATIENCE_S)
        return self._result(champion, baselines, is_finished=champion.model_uri is not None, untold=untold)

    def _register(self, closing: Any, champion: Champion) -> Champion:
        from tuner.finale import register_champion
        from tuner.mlflow_client import outages

        self.progress.phase("registering the champion")
        untold = self.tracking.flush(MLFLOW_PATIENCE_S)
        run_id = self.tracking.run_id(champion.number)
        if untold or run_id is None:
            return champion
        try:
            if self.pretrained is not None and self.pretrained[1].is_new:
                from tuner.pretraining import register_pretrained

                register_pretrained(*self.pretrained, self.home, self.tracking_uri)
            return register_champion(closing, champion, self.tracking_uri, run_id, time.time())
        except outages() as error:
            self.progress.note(f"MLflow did not take the champion: {error}", style="yellow")
            return champion

    def _result(
        self, champion: Champion | None, baselines: list[Standing], *, is_finished: bool, untold: int
    ) -> SweepResult:
        return SweepResult(
            name=self.spec.name,
            home=self.home,
            tracking_uri=self.tracking_uri,
            metric=self.spec.metric,
            mode=self.spec.mode,
            records=tuple(trials_of(self._records())),
            champion=champion,
            baselines=tuple(baselines),
            is_finished=is_finished,
            untold=untold,
            seconds=time.monotonic() - self.started,
        )


@contextmanager
def _first_interrupt_calls(interrupt: Any, progress: Progress) -> Iterator[None]:
    """While open, the first Ctrl-C or SIGTERM calls ``interrupt``; a second one raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    calls = 0

    def handle(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise KeyboardInterrupt
        progress.note("Stopping after the running epochs; once more stops at once.", style="yellow")
        interrupt()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _summary(spec: SweepSpec, data: PreparedData) -> dict[str, Any]:
    """What the parent run shows of the spec and the pictures."""
    weights = spec.model.weights
    return {
        "backbone": spec.model.backbone,
        "weights": weights if isinstance(weights, str) else f"pretrain:{weights.pretrain.name}",
        "source": spec.data.source,
        "image_size_px": spec.data.image_size_px,
        "num_classes": len(data.config.class_names),
        "num_train": data.size("train"),
        "num_val": data.size("val"),
        "num_test": data.size("test"),
        "num_bad_files": len(data.report.bad_files),
        "num_trials": spec.search.num_trials,
        "epochs": spec.budget.epochs,
        "metric": spec.metric,
        "seed": spec.seed,
    }


def _flat(standing: Standing) -> dict[str, float]:
    return {f"val/{name}": value for name, value in standing.val.items()} | {
        f"test/{name}": value for name, value in standing.test.items()
    }


def _note(champion: Champion, baselines: list[Standing]) -> str:
    """The parent run's description."""
    lines = [f"Champion: trial {champion.number}, {_figures(champion.standing)}."]
    lines += [f"- {standing.name}: {_figures(standing)}" for standing in baselines]
    return "\n".join(lines)


def _figures(standing: Standing) -> str:
    text = f"validation accuracy {standing.val['accuracy']:.4f}"
    if standing.test:
        test = standing.test
        text += (
            f", test accuracy {test['accuracy']:.4f} "
            f"(95% interval {test['accuracy_low']:.4f} to {test['accuracy_high']:.4f})"
        )
    return text
