"""One sweep from spec to champion: lanes start while pictures are packed, Ray Tune searches, the winner is tested.

In: a ``SweepSpec``. Out: a ``SweepResult``, a journal, runs and a model in MLflow. A sweep that was interrupted goes on
from its journal by ``resume_sweep``.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal

from search_spaces.loading import dump_spec
from search_spaces.space import SearchSpace
from search_spaces.spec import SweepSpec
from trainables.config import TrialConfig, WeightsFile
from trainables.errors import InputError
from trainables.files.outages import StorageAwayError, may_pass
from trainables.files.storage import make_durable, write_bytes
from tuner.cluster.lanes import LaneError, LanePool, LanesLostError
from tuner.cluster.ray_cluster import import_ray, import_torch, open_lanes
from tuner.ending.describing import environment, summary
from tuner.ending.settling import tell_the_rest
from tuner.models.registry import MLflowAwayError
from tuner.networks.material import materials_of
from tuner.networks.measuring import settle_compute
from tuner.networks.network import Network, base_trials
from tuner.networks.planning import Plan, plan_sweep
from tuner.networks.preparing import check_quickly, feature_settings, refuse_password, still_here
from tuner.networks.pretraining import Pretrained, Pretraining, check_same, find_pretrained, train_backbone
from tuner.networks.pricing import Pricing
from tuner.outcomes import SweepFailedError
from tuner.paths import HomePaths
from tuner.pictures.dealt import PreparedData
from tuner.pictures.first_pictures import refuse_other_pictures, summarise
from tuner.progress import Progress, shown
from tuner.records.journal import Journal, Record, read_records, trials_of
from tuner.records.kept_places import first_weights, keep_pretrained, pretrained_weights
from tuner.records.resuming import Left, describe_left, find_left
from tuner.records.reuse import Reuse, bytes_held, reuse_of
from tuner.records.shared_home import SweepTwin, pull_results, pull_sweeps
from tuner.records.sweep_names import refuse_used_name
from tuner.report.result import Champion, Standing, SweepResult
from tuner.tracking.runs import PATIENCE_S, Tracking


def run_sweep(
    spec: SweepSpec, *, home: str | Path | HomePaths | None = None, progress: Progress | None = None
) -> SweepResult:
    """Runs a new sweep to its end, or to the first Ctrl-C.

    Args:
        spec: What to search.
        home: Where everything is written; default ``THAW_HOME``, else ``~/.thaw``.
        progress: Shows what happens; by default a panel in a notebook, and nothing elsewhere.

    Raises:
        InputError: The spec or its surroundings will not do; nothing was trained.
        SweepFailedError: Every trial failed, or every lane is lost.
    """
    paths = HomePaths.resolve(home)
    pull_sweeps(paths, spec.name)
    refuse_used_name(spec.name, paths)
    with shown(progress) as seen:
        return _Sweep(spec, paths, seen).run()


def resume_sweep(
    name: str,
    *,
    overrides: Sequence[str] = (),
    home: str | Path | HomePaths | None = None,
    progress: Progress | None = None,
) -> SweepResult | None:
    """Goes on with a sweep that was interrupted, from its journal; or makes one longer.

    Args:
        name: The sweep's.
        overrides: ``field.path=VALUE`` each, such as ``search.num_trials=40``: a finished sweep then runs what is new.
        home: Where it lies; default ``THAW_HOME``, else ``~/.thaw``.
        progress: Shows what happens; by default a panel in a notebook, and nothing elsewhere.

    Returns:
        None where the sweep is finished and nothing new is asked of it.

    Raises:
        InputError: There is no such sweep, or the overrides change what may not change.
        SweepFailedError: Every trial failed, or every lane is lost.
    """
    paths = HomePaths.resolve(home)
    pull_sweeps(paths, name, goes_on=True)
    if name in paths.sweep_names():
        pull_results(paths, name)  # of which MLflow may not have been told
    left = find_left(paths, name, overrides)
    if "tracking.uri" in left.changes:
        refuse_password(left.spec)
    with Journal.open(paths.sweep(name).journal):
        pass  # refused here, before anything is started, where another process runs the sweep
    with shown(progress) as seen:
        if left.is_finished:
            tell_the_rest(paths, left.spec, seen)
            return None
        for line in describe_left(left, paths):
            seen.note(line)
        return _Sweep(left.spec, paths, seen, left=left).run()


_MOST_BAD_FILES = 5
_MOST_LANES = 1024
"""Lanes of a sweep that only its budget ends, where the cluster has room for so many."""


class _Sweep:
    """One run of one sweep; its methods are its phases, in order."""

    def __init__(self, spec: SweepSpec, home: HomePaths, progress: Progress, *, left: Left | None = None) -> None:
        self.spec, self.home, self.progress = spec, home, progress
        self.left = left
        self.paths = home.sweep(spec.name)
        self.twin = SweepTwin(home, spec.name)
        self.tracking_uri = home.tracking_uri(spec.tracking.uri)
        self.tracking = Tracking.for_sweep(home, spec.name, self.tracking_uri)
        self.started = time.monotonic()
        self.journal: Journal | None = None
        self.has_epochs = False
        self.pretrained: list[tuple[Pretraining, Pretrained]] = []
        self.num_records = 0
        progress.num_untold = lambda: self.num_records - self.tracking.num_sent if self.tracking.is_away else 0

    def run(self) -> SweepResult:
        """All phases."""
        check_quickly(self.spec, self.home, goes_on=self.left is not None)
        with ExitStack() as stack:
            # One thread: until Ray is up, each further one would take its turns of the interpreter from Ray's start.
            executor = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="prepare"))
            import_ray()
            are_lanes_starting = threading.Event()
            stack.callback(are_lanes_starting.set)
            preparing = executor.submit(self._prepare, are_lanes_starting)
            pool = stack.enter_context(
                open_lanes(
                    self.spec.budget,
                    concurrency=self.spec.budget.concurrency,
                    most_lanes=self.spec.most_trials or _MOST_LANES,
                    storage=self.home.uri_of(self.paths.ray),
                    progress=self.progress,
                    features=feature_settings(self.spec, self.home),
                    check=lambda: preparing.result() if preparing.done() else None,
                )
            )
            are_lanes_starting.set()
            self.spec, data, networks, space = preparing.result()
            # Whoever has the journal is alone from here on.
            self.journal = stack.enter_context(Journal.open(self.paths.journal))
            self.paths.remove_torn()
            try:
                self.num_records = len(self.journal.records())
                self.spec = settle_compute(self.spec, space, networks, pool, self.home, self.progress)
                self._keep_spec(data, networks)
                self._begin(data)
                return self._train(data, networks, space, pool)
            except (LaneError, LanesLostError) as error:
                raise self._stranded(error) from error
            except StorageAwayError as error:
                return self._interrupted(str(error))
            except OSError as error:
                # Before the first record there is nothing to go on with, and the name stays free.
                if error.errno is None or not may_pass(error) or not self.num_records:
                    raise
                return self._interrupted(f"{error}; make room or bring the storage back, then resume")

    def _train(
        self, data: PreparedData, networks: dict[str, Network], space: SearchSpace, pool: LanePool
    ) -> SweepResult:
        """All that needs lanes, in order.

        Raises:
            LaneError: A lane failed at what nothing can do without.
            LanesLostError: There is no lane any more.
        """
        trained = {
            name: self._pretrain(name, network.pretraining, pool)
            for name, network in networks.items()
            if network.pretraining is not None
        }
        bases = base_trials(self.spec, data.config, networks, trained)
        materials = materials_of(self.spec, networks, data)
        device: Literal["cpu", "cuda"] = "cuda" if pool.shape.gpus_per_worker else "cpu"
        interruption = self._search(space, Pricing(self.spec, space, materials, device), bases, pool)
        if interruption is not None:
            return self._interrupted(interruption)
        return self._finish(space, bases, data, pool)

    # --- before ----------------------------------------------------------------------------------------------

    def _prepare(self, are_lanes_starting: threading.Event) -> Plan:
        """All that needs no lane.

        What it takes to start lanes (torch) is imported first; what takes as long again and can be done while they
        come up (torchvision and its networks) waits for them.
        """
        import_torch()
        return plan_sweep(
            self.spec,
            self.home,
            self.progress,
            goes_on=self.left is not None,
            before_networks=are_lanes_starting.wait,
            began_with=None if self.left is None else first_weights(self.paths),
            pretrained=pretrained_weights(self.paths),
        )

    def _keep_spec(self, data: PreparedData, networks: dict[str, Network]) -> None:
        """Writes what a resume needs before the journal has anything to resume.

        Raises:
            InputError: The sweep goes on, but its pictures are no longer those that it began with; or it is new, and
                another process was faster; or another went on with it meanwhile.
        """
        if self.left is None and self.num_records:
            refuse_used_name(self.spec.name, self.home)
        if self.left is not None and self.num_records > len(self.left.records):
            raise InputError(f"resume: another process went on with sweep {self.spec.name!r} meanwhile; look again")
        if self.left is not None:
            refuse_other_pictures(self.paths, self.spec, data)
            return
        write_bytes(str(self.paths.spec), dump_spec(self.spec).encode())
        weights = {name: network.first_weights for name, network in networks.items()}
        for path, content in ((self.paths.data, summarise(data, weights)), (self.paths.environment, environment())):
            write_bytes(str(path), json.dumps(content, indent=1).encode())
        for path in (self.paths.spec, self.paths.data, self.paths.environment):
            make_durable(str(path))

    def _begin(self, data: PreparedData) -> None:
        bad_files = data.report.bad_files
        for bad in bad_files[:_MOST_BAD_FILES]:
            self.progress.note(f"set aside: {bad.name}: {bad.reason}", style="yellow")
        if len(bad_files) > _MOST_BAD_FILES:
            more = f"set aside: {len(bad_files) - _MOST_BAD_FILES} more; `thaw data inspect` lists them"
            self.progress.note(more, style="yellow")
        self.record("sweep", name=self.spec.name, params=summary(self.spec, data), tags={}, note="")
        if self.left is not None and self.left.changes:
            # The journal first: who is killed between the two finds the change there.
            self.record("extended", changes={path: new for path, (_, new) in self.left.changes.items()})
            write_bytes(str(self.paths.spec), dump_spec(self.spec).encode())
        self.record("files", paths=[str(path) for path in (self.paths.spec, self.paths.data, self.paths.environment)])

    def record(self, event: Any, **fields: Any) -> None:
        """Writes the journal and shows the record; MLflow is told from the first epoch on."""
        assert self.journal is not None
        written = self.journal.append(event, **fields)
        self.num_records += 1
        self.progress.see(written)
        self.twin.push(at_once=event in ("sweep", "end", "exchange", "champion", "finished", "interrupted"))
        if event == "epoch":
            self.has_epochs = True
            self.tracking.start()

    # --- pretraining and search ------------------------------------------------------------------------------

    def _pretrain(self, network: str, pretraining: Pretraining, pool: LanePool) -> WeightsFile:
        name, given = pretraining.spec.name, pretrained_weights(self.paths).get(network)
        here = None if given is None else still_here(given, self.home)
        try:
            found = find_pretrained(pretraining, self.home, self.tracking_uri)
        except MLflowAwayError as error:
            found = None
            if here is None:
                if self.left is not None and trials_of(list(self.left.records)):
                    raise  # they may stand on weights that only the registry has
                self.progress.note(f"{error}. {name} is trained here, whether or not it was before", style="yellow")
        if here is not None and (found is None or found.weights.key != here.key):
            self.progress.note(f"pretraining {name}: trials go on with the weights that it gave this sweep at first")
            return here
        if found is None:
            self.progress.phase(f"pretraining {name}")
            epochs = pretraining.spec.epochs
            found = train_backbone(
                pretraining,
                self.home,
                pool,
                lambda epoch, _: self.progress.counted(f"pretraining {name}", epoch, epochs),
                lambda: self.progress.phase(f"waiting for another sweep that pretrains {name}"),
            )
        check_same(pretraining, found, given)
        if given is None:
            keep_pretrained(self.paths, network, found.weights)
        self.pretrained.append((pretraining, found))
        return found.weights

    def _search(
        self, space: SearchSpace, pricing: Pricing, bases: dict[str, TrialConfig], pool: LanePool
    ) -> str | None:
        """Runs the trials that are left; why the sweep was interrupted, None when it was not."""
        from tuner.networks.probing import run_probe_phase
        from tuner.search.search_phase import SearchPhase  # and Ray Tune: before the probe waits for a lane, not after

        points = run_probe_phase(self.spec, space, bases, pool, self.paths, record=self.record, progress=self.progress)
        phase = SearchPhase(
            self.spec,
            space,
            pricing,
            bases,
            self.home,
            record=self.record,
            progress=self.progress,
            has_epochs=lambda: self.has_epochs,
            first_points=points,
        )
        return phase.run(pool)

    def _records(self) -> list[Record]:
        return read_records(self.paths.journal)

    # --- after -----------------------------------------------------------------------------------------------

    def _interrupted(self, reason: str) -> SweepResult:
        self.progress.note(reason, style="yellow")
        # A journal that ends without it is a killed sweep's, which goes on just so.
        with suppress(StorageAwayError, OSError):
            self.record("interrupted", reason=reason)
        untold = self.tracking.close(PATIENCE_S)
        return self._result(None, [], self._reuse(), is_finished=False, untold=untold)

    def _stranded(self, error: LaneError | LanesLostError) -> SweepFailedError:
        """What to say when nothing can be trained any more; what is left waits for a resume."""
        text = f"sweep {self.spec.name!r} cannot go on: {error}"
        if not self.num_records:
            return SweepFailedError(f"{text}; nothing was trained")
        self._interrupted(str(error))
        return SweepFailedError(f"{text}; when that is mended, `thaw resume {self.spec.name}` goes on")

    def _finish(
        self, space: SearchSpace, bases: dict[str, TrialConfig], data: PreparedData, pool: LanePool
    ) -> SweepResult:
        from tuner.ending.end_phase import EndPhase
        from tuner.ending.steps import Closing

        self.tracking.start()
        closing = Closing(self.spec, self.home, data, pool, self.record, self.progress.phase, self.progress.counted)
        phase = EndPhase(closing, self.tracking, self.pretrained, self.progress)
        try:
            champion, baselines, reuse = phase.run(space, bases)
        except SweepFailedError:
            self.tracking.close(PATIENCE_S)
            raise
        untold = self.tracking.close(PATIENCE_S)
        return self._result(champion, baselines, reuse, is_finished=champion.model_uri is not None, untold=untold)

    def _reuse(self) -> Reuse:
        return reuse_of(trials_of(self._records()), bytes_held(feature_settings(self.spec, self.home)))

    def _result(
        self, champion: Champion | None, baselines: list[Standing], reuse: Reuse, *, is_finished: bool, untold: int
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
            reuse=reuse,
        )
