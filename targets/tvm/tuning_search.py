"""Candidates for one task: MetaSchedule's evolutionary search (Shao et al., 2022, arXiv:2205.13603).

The library runs on one thread, so the rules are TVM's for CPUs without the one for threads, and without
intrinsics: what is tuned is float, and LLVM vectorizes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qcompile.targets.tvm.tools import load_tvm
from qcompile.targets.tvm.tuning_records import Record
from qcompile.targets.tvm.tuning_tasks import Task, module_of

POPULATION = 32
GENERATIONS = 2
_ROUNDS = 1 << 20
_REPEATED = 4
"""Rounds with nothing new after which the search is at its end."""
_LEARN_FROM = 8
"""Measurements before the model has a say."""


class Search:
    """The search for one task; it goes on from what is recorded.

    Args:
        task: What to schedule.
        target: TVM's.
        records: Of the task.
        seed: Of all that is random.
        size: Candidates a round.
    """

    def __init__(
        self, task: Task, target: Any, records: Sequence[Record], seed: int, size: int
    ) -> None:
        load_tvm()
        from tvm.s_tir.meta_schedule.database import MemoryDatabase

        self.target, self.size = target, size
        self.module = module_of(task.function)
        self.seen = {_text(record.trace) for record in records if record.is_trial}
        self.database = MemoryDatabase()
        self.workload = self.database.commit_workload(self.module)
        self.context = _context(self.module, target, seed)
        self.model = _model(seed)
        self.open: list[Any] = []
        known = self._remember(records)
        self.context.pre_tuning(
            max_trials=_ROUNDS,
            num_trials_per_iter=size,
            database=self.database,
            cost_model=self.model,
        )
        self._learn(known)

    def propose(self, count: int) -> dict[str, Any]:
        """Return at most so many new schedules by the text of their trace; none if there are no others."""
        for _ in range(_REPEATED):
            self.open = list(self.context.generate_measure_candidates() or ())
            found = {trace_text(c.sch.trace): c.sch for c in self.open}
            new = [text for text in found if text not in self.seen][:count]
            if new:
                self.seen |= set(new)
                return {text: found[text] for text in new}
            if self.open:
                self.tell({})
        return {}

    def tell(self, seconds: Mapping[str, float | None]) -> None:
        """Hand what was measured of the last candidates to the search, by the text of the trace."""
        timed: dict[Any, float] = {}
        for candidate in self.open:
            measured = seconds.get(trace_text(candidate.sch.trace))
            if measured is not None:
                self._commit(candidate.sch.trace, measured)
                timed[candidate] = measured
        self.context.notify_runner_results(self.open, [_result(None) for _ in self.open])
        self._learn(list(timed.items()))

    def _commit(self, trace: Any, seconds: float) -> None:
        from tvm.s_tir.meta_schedule.database import TuningRecord

        record = TuningRecord(trace, self.workload, [seconds], self.target, self._arguments())
        self.database.commit_tuning_record(record)

    def _remember(self, records: Sequence[Record]) -> list[tuple[Any, float]]:
        from tvm.s_tir.meta_schedule.search_strategy import MeasureCandidate

        known = []
        for record in records:
            schedule = replay(self.module, record) if record.seconds else None
            if schedule is not None and record.seconds is not None:
                self._commit(schedule.trace, record.seconds)
                known.append((MeasureCandidate(schedule, self._arguments()), record.seconds))
        return known

    def _learn(self, timed: Sequence[tuple[Any, float]]) -> None:
        if timed:
            candidates, seconds = zip(*timed, strict=True)
            self.model.update(self.context, list(candidates), [_result(s) for s in seconds])

    def _arguments(self) -> Any:
        from tvm.s_tir.meta_schedule.arg_info import ArgInfo

        return ArgInfo.from_entry_func(self.module, remove_preproc=True)


def replay(module: Any, record: Record) -> Any | None:
    """Return a module's schedule by a record; ``None`` for the default, or one that does not fit."""
    tvm = load_tvm()
    if not record.is_trial:
        return None
    schedule = tvm.s_tir.Schedule(module)
    try:
        tvm.s_tir.Trace.apply_json_to_schedule(record.trace, schedule)
    except Exception:
        return None
    return schedule


def plain(value: Any) -> Any:
    """Return TVM's containers as lists and Python's own scalars, for JSON."""
    import tvm_ffi

    if isinstance(value, list | tuple | tvm_ffi.Array):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return str(value)
    return getattr(value, "value", value)  # of IntImm, FloatImm


def trace_text(trace: Any) -> str:
    """Return a trace as JSON."""
    return json.dumps(plain(trace.as_json()), separators=(",", ":"))


def _text(trace: Any) -> str:
    return json.dumps(trace, separators=(",", ":"))


def _result(seconds: float | None) -> Any:
    from tvm.s_tir.meta_schedule.runner import RunnerResult

    return RunnerResult(None, "failed") if seconds is None else RunnerResult([seconds], None)


def _context(module: Any, target: Any, seed: int) -> Any:
    """Return TVM's context.

    Its Python constructor imports the tensor intrinsics of all architectures first, which takes 20 s.
    """
    from tvm.s_tir.meta_schedule import TuneContext, _ffi_api
    from tvm.s_tir.meta_schedule.search_strategy import EvolutionarySearch

    strategy = EvolutionarySearch(
        population_size=POPULATION,
        init_min_unmeasured=POPULATION // 2,
        genetic_num_iters=GENERATIONS,
    )
    context = TuneContext.__new__(TuneContext)
    threads = len(os.sched_getaffinity(0))
    context.__init_handle_by_constructor__(
        _ffi_api.TuneContext, module, target, _space(), strategy, "main", threads, seed, _be_quiet
    )
    _ffi_api.TuneContextInitialize(context)
    return context


def _be_quiet(*_: Any) -> None:
    """Take what MetaSchedule would log."""


def _space() -> Any:
    """Return the rules by which schedules are made: tiles, vectors, unrolling, prepacked constants."""
    from tvm.s_tir.meta_schedule import mutator, postproc
    from tvm.s_tir.meta_schedule import schedule_rule as rule
    from tvm.s_tir.meta_schedule.space_generator import PostOrderApply

    inline = {"into_producer": False, "into_consumer": True, "inline_const_tensor": True}
    require = {"disallow_if_then_else": True, "require_injective": True, "require_ordered": True}
    reuse = rule.ReuseType(req="may", levels=[1, 2], scope="global")
    tiling = rule.MultiLevelTiling(
        structure="SSRSRS", tile_binds=None, max_innermost_factor=64, reuse_write=reuse
    )
    unroll = rule.ParallelizeVectorizeUnroll(
        max_jobs_per_core=-1, max_vectorize_extent=64, unroll_max_steps=[0, 16, 64, 512]
    )
    rules = [
        rule.InlineConstantScalars(),
        rule.AutoInline(**inline, **require, disallow_op=["tirx.exp"]),
        rule.AddRFactor(max_jobs_per_core=16, max_innermost_factor=64),
        tiling,
        unroll,
        rule.RandomComputeLocation(),
    ]
    after = [
        postproc.DisallowDynamicLoop(),
        postproc.RewriteParallelVectorizeUnroll(),
        postproc.RewriteReductionBlock(),
        postproc.RewriteLayout(),
    ]
    mutators = {
        mutator.MutateTileSize(): 0.9,
        mutator.MutateUnroll(): 0.05,
        mutator.MutateComputeLocation(): 0.05,
    }
    return PostOrderApply(sch_rules=rules, postprocs=after, mutator_probs=mutators)


def _model(seed: int) -> Any:
    """Return a cost model: ridge regression of the logarithm of the time on MetaSchedule's features."""
    from tvm.ir.utils import derived_object
    from tvm.s_tir.meta_schedule.cost_model import PyCostModel

    @derived_object
    class Ridge(PyCostModel):  # type: ignore[misc]
        """Guesses at random until it has learned."""

        def __init__(self) -> None:
            super().__init__()
            self.random = np.random.default_rng(seed)
            self.rows: list[Any] = []
            self.times: list[float] = []

        def load(self, path: str) -> None:
            """Keep nothing in files."""

        def save(self, path: str) -> None:
            """Keep nothing in files."""

        def update(self, context: Any, candidates: Any, results: Any) -> None:
            """Learn results, all of them measured."""
            self.rows += list(_features(context, candidates))
            self.times += [float(np.log(float(r.run_secs[0]))) for r in results]

        def predict(self, context: Any, candidates: Any) -> Any:
            """Return a score for each; the higher, the faster."""
            if len(self.times) < _LEARN_FROM:
                return self.random.random(len(candidates))
            rows, times = np.stack(self.rows), np.array(self.times)
            return -_ridge(rows, times, _features(context, candidates))

    return Ridge()


def _ridge(rows: Any, times: Any, asked: Any, strength: float = 1.0) -> Any:
    """Return the times that a ridge regression predicts, columns standardized first."""
    middle, spread = rows.mean(0), rows.std(0) + 1e-6
    x, y = (rows - middle) / spread, times - times.mean()
    inner = x @ x.T + strength * np.eye(len(x))  # fewer rows than columns
    return ((asked - middle) / spread) @ (x.T @ np.linalg.solve(inner, y))


def _features(context: Any, candidates: Any) -> Any:
    """Return a row a candidate: the features of its stores, the largest and the sum."""
    from tvm.s_tir.meta_schedule.feature_extractor import PerStoreFeature

    found = PerStoreFeature().extract_from(context, candidates)
    stores = [part.numpy() for part in found]
    return np.stack([np.concatenate([s.sum(0), s.max(0)]) for s in stores])
