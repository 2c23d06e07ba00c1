"""The Ray runner: one actor a GPU. Actors that die are replaced, and machines that join are used."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from latentcache.core.records import ShardReport
from latentcache.errors import EncoderError, MachineError
from latentcache.running import gpu_sharing, stall
from latentcache.running.attempt import Failed, GivenBack, attempt, in_one_line
from latentcache.running.events import Died, Event, Left, Progress, Started, Task
from latentcache.running.failure_policy import all_unfit, unfit
from latentcache.running.queue import LoadShard, WorkQueue
from latentcache.running.runners.elastic import Node, layout_for, new_seats
from latentcache.running.runners.ray_actor import Beat, EncodeActor, Place
from latentcache.running.runners.ray_cluster import (
    connect,
    leaving_nodes,
    nodes,
    search_path,
    watch_ray,
)
from latentcache.running.runners.ray_metrics import RunMetrics
from latentcache.running.runners.ray_slot import Slot
from latentcache.running.runners.ray_watch import message
from latentcache.running.worker import SHARDS_IN_HAND, WorkerSpec

log = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 1.0
#: The cluster is looked at this often, for machines that have come or are about to go.
LOOK_INTERVAL_S = 2.0
#: A worker's need of a GPU's memory is known in this time, with loading the model, or not at all.
MEASURE_S = 600.0
#: A worker that is stopped may finish what it is writing in this time.
STOP_S = 10.0


def run(spec: WorkerSpec, work: WorkQueue, load_shard: LoadShard) -> Iterator[Event]:
    """Encode every shard of `work` on Ray actors, yielding events as they come."""
    started_here = connect(spec.config.run)
    runner = _Runner(spec, work, load_shard)
    metrics = RunMetrics()
    watch = watch_ray()
    try:
        for event in runner.events():
            if lost := watch.notice():
                raise MachineError(message(lost))
            metrics.add(event)
            yield event
    except RayError as error:
        if lost := watch.notice():
            raise MachineError(message(lost)) from error
        raise
    finally:
        if not watch.notice():  # of a Ray that is gone nothing can be asked
            watch.close()
            runner.stop()
            if started_here:
                ray.shutdown()


def _per_gpu(spec: WorkerSpec, there: Sequence[Node]) -> int:
    """Return how many workers share a GPU; measured on one, if it is left to the run."""
    number = gpu_sharing.settled(spec.config.run, there)
    if number is not None:
        return number
    task = ray.remote(_measured).options(num_gpus=1, num_cpus=1, max_retries=1)
    reference = task.remote(spec, search_path())
    try:
        need: gpu_sharing.GpuNeed = ray.get(reference, timeout=MEASURE_S)
    except RayError as error:
        ray.cancel(reference, force=True)
        log.warning(
            "run.workers_per_gpu: auto could not be measured, so it is 1: %s. Give a number, or see "
            "whether others hold the cluster's GPUs.",
            in_one_line(error),
        )
        return 1
    number = gpu_sharing.workers_per_gpu(need, gpu_sharing.cpus_per_gpu(there))
    log.info("run.workers_per_gpu: auto is %d here; measured: %s", number, need)
    return number


def _measured(spec: WorkerSpec, search: Sequence[str]) -> gpu_sharing.GpuNeed:
    """Measure in a task of the cluster. What fails here fails again, with its name, in every worker."""
    sys.path.extend(path for path in search if path not in sys.path)
    need = attempt(partial(gpu_sharing.measure, spec), starting=True)
    if isinstance(need, Failed):
        return gpu_sharing.GpuNeed(free_bytes=0, worker_bytes=None)
    return need


class _Runner:
    """Hands shards to workers, and follows the cluster: see `elastic`. Raises ConfigError."""

    def __init__(self, spec: WorkerSpec, work: WorkQueue, load_shard: LoadShard) -> None:
        self._spec = spec
        self._work = work
        self._load_shard = load_shard
        self._max_tries = spec.config.run.max_retries + 1
        self._nodes = nodes()
        self._layout = layout_for(spec.config.run, self._nodes, _per_gpu(spec, self._nodes))
        self._slots: list[Slot] = []
        self._num_slots = 0
        self._clips_before = 0
        self._warnings: tuple[str, ...] = ()
        self._polled = self._looked = 0.0

    def events(self) -> Iterator[Event]:
        self._take_seats(max(1, len(self._work)))
        for slot in self._slots:
            slot.is_late = False
        while self._work or any(slot.in_hand for slot in self._slots):
            self._hand_out()
            for slot, reference in self._finished():
                yield from self._settle(slot, reference)
            if time.monotonic() - self._polled > PROGRESS_INTERVAL_S:
                yield self._poll()
                yield from self._tend()
        yield self._poll()

    def stop(self) -> None:
        up = [slot.actor.close.remote() for slot in self._slots if slot.is_up]
        if up:
            ray.wait(up, num_returns=len(up), timeout=STOP_S)
        for slot in self._slots:
            self._kill(slot)

    def _tend(self) -> Iterator[Event]:
        """Replace workers that stand still, let go of those that leave, and follow the cluster."""
        for slot in list(self._slots):
            if slot.is_lost:
                yield from self._replace(slot, "its worker died")
            elif why := self._why_unfit(slot):
                yield from self._replace_unfit(slot, why)
            elif slot.is_leaving and not slot.in_hand:
                yield from self._let_go(slot)
        if time.monotonic() - self._looked > LOOK_INTERVAL_S:
            self._look()

    def _look(self) -> None:
        """Use machines that have come, and take nothing more to those that are about to go."""
        self._nodes, leaving = nodes(), leaving_nodes()
        for slot in list(self._slots):
            if slot.is_up and slot.node in leaving and not slot.is_leaving:
                slot.is_leaving = True
                slot.actor.leave.remote()
            elif not slot.is_up and self._has_lost_seat(slot):
                self._drop(slot)
        self._take_seats(len(self._work))

    def _take_seats(self, most: int) -> None:
        """Start workers, at most so many, on what is free for them."""
        self._looked = time.monotonic()
        taken = [slot.seat for slot in self._slots]
        for seat in new_seats(taken, self._layout.seats(self._nodes), most - self._num_waiting()):
            slot = Slot(number=self._num_slots, seat=seat, is_late=True, watch=self._new_watch())
            self._num_slots += 1
            self._slots.append(slot)
            self._start(slot)

    def _num_waiting(self) -> int:
        """Return how many workers are on their way and have had no shard yet."""
        return sum(slot.ready is not None for slot in self._slots)

    def _has_lost_seat(self, slot: Slot) -> bool:
        return slot.seat is not None and slot.seat not in {node.id for node in self._nodes}

    def _drop(self, slot: Slot) -> None:
        self._kill(slot)
        self._slots.remove(slot)
        self._clips_before += slot.clips_before + slot.clips_done

    def _kill(self, slot: Slot) -> None:
        if slot.actor is not None:
            ray.kill(slot.actor)  # it may only be out of reach, and would keep its GPU
        slot.actor = slot.ready = None
        slot.is_up = False

    def _new_watch(self) -> stall.Watch:
        device = "cuda" if self._layout.per_gpu else "cpu"
        return stall.watch(self._spec.config.run, self._spec.manifest, device)

    def _start(self, slot: Slot) -> None:
        slot.clips_before += slot.clips_done
        slot.clips_done = slot.num_steps = slot.num_given_back = 0
        slot.watch = self._new_watch()
        slot.is_up = slot.is_lost = slot.is_leaving = False
        slot.name = slot.node = ""
        gpus, cpus = self._layout.claim(self._nodes)
        options: dict[str, Any] = {
            "num_gpus": gpus,
            "num_cpus": cpus,
            "max_concurrency": SHARDS_IN_HAND + 1,
            "max_restarts": 0,
        }
        if slot.seat is not None:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(slot.seat, soft=False)
        actor = ray.remote(EncodeActor).options(**options)
        slot.actor = actor.remote(self._spec, self._layout, slot.number, search_path())
        slot.ready = slot.actor.place.remote()

    def _hand_out(self) -> None:
        """Give every worker with room one more task, the least loaded first, until none has room."""
        up = {slot.number for slot in self._slots if slot.is_up and not slot.is_leaving}
        for slot in sorted(self._slots, key=lambda slot: len(slot.in_hand)) * SHARDS_IN_HAND:
            if not self._work:
                return
            if not slot.has_room():
                continue
            task = self._work.take(alone=not slot.in_hand, worker=slot.number, up=up)
            if task is None:
                continue
            shard = self._load_shard(task.shard)
            slot.in_hand[slot.actor.encode_shard.remote(shard)] = task

    def _finished(self) -> list[tuple[Slot, Any]]:
        """Wait a moment for what is done next; returns all that is done by then."""
        owners = {ref: slot for slot in self._slots for ref in slot.in_hand}
        owners.update({slot.ready: slot for slot in self._slots if slot.ready is not None})
        if not owners:
            time.sleep(PROGRESS_INTERVAL_S)
            return []
        done, _ = ray.wait([*owners], num_returns=1, timeout=PROGRESS_INTERVAL_S)
        if done:
            done, _ = ray.wait([*owners], num_returns=len(owners), timeout=0)
        return [(owners[reference], reference) for reference in done]

    def _settle(self, slot: Slot, reference: Any) -> Iterator[Event]:
        if reference is slot.ready:
            yield from self._settle_start(slot)
            return
        task = slot.in_hand.pop(reference, None)
        if task is None:
            return  # the actor died, and this was settled with the rest of what it had in hand
        slot.num_settled += 1
        try:
            outcome = ray.get(reference)
        except RayActorError as error:
            slot.in_hand[reference] = task
            is_of_process = self._is_of_process(slot, error)
            why = f"its worker died: {in_one_line(error)}"
            yield from self._replace(slot, why, is_of_process=is_of_process)
        except RayError as error:  # the task or its result was lost on the way
            yield self._work.lost(task, in_one_line(error), slot.number)
        else:
            yield from self._settle_outcome(slot, reference, task, outcome)

    def _settle_outcome(
        self, slot: Slot, reference: Any, task: Task, outcome: ShardReport | Failed | GivenBack
    ) -> Iterator[Event]:
        if isinstance(outcome, GivenBack):
            self._give_back(slot, task)
        elif isinstance(outcome, Failed) and outcome.is_unfit:
            slot.in_hand[reference] = task
            yield from self._replace_unfit(slot, outcome.error, is_sick=True)
        else:
            slot.count(outcome)
            yield self._work.settle(task, outcome, slot.name, slot.number)

    def _is_of_process(self, slot: Slot, error: RayActorError) -> bool:
        """Tell whether only the process died, and neither its machine nor the way to it is gone."""
        self._nodes = nodes()
        is_there = slot.node in {node.id for node in self._nodes}
        return is_there and not isinstance(error, ActorUnavailableError)

    def _give_back(self, slot: Slot, task: Task) -> None:
        self._work.give_back(task)
        slot.is_leaving = True
        slot.num_given_back += 1

    def _replace(self, slot: Slot, why: str, *, is_of_process: bool = False) -> Iterator[Event]:
        """Go on without a worker. One that was leaving anyway gives back what it had no time for.

        is_of_process: its process died, perhaps of what it had in hand.
        """
        lost = list(slot.in_hand.values())
        slot.in_hand.clear()
        if slot.is_leaving:
            for each in lost:
                self._give_back(slot, each)
            yield from self._let_go(slot)
            return
        is_spent = slot.num_unfit >= self._max_tries
        if not is_spent:
            self._kill(slot)
        yield Died(name=slot.name, error=why.removeprefix("its worker died: "))
        if is_of_process:
            yield from self._work.died(lost, why, slot.number)
        else:
            yield from (self._work.lost(each, why, slot.number) for each in lost)
        if is_spent:
            self._retire(slot, f"{slot.name} was unfit {slot.num_unfit} times: {why}")
        else:
            self._start(slot)

    def _why_unfit(self, slot: Slot) -> str | None:
        """Return why a worker that is up is of no use."""
        if not slot.is_up:
            return None
        return slot.watch.why if slot.stands_still() else self._work.why_unfit(slot.number)

    def _replace_unfit(self, slot: Slot, why: str, *, is_sick: bool = False) -> Iterator[Event]:
        """Go on with a fresh process in a worker's place, if that may help. is_sick: its GPU failed."""
        self._work.forget(slot.number)
        slot.num_unfit += not slot.is_leaving
        yield from self._replace(slot, why)
        if slot.is_retired and all(other.is_retired for other in self._slots):
            raise MachineError(unfit(why) if is_sick else all_unfit(why))

    def _retire(self, slot: Slot, why: str) -> None:
        """Use a place no more. A process that is up stays, so that Ray gives its GPU to nobody else."""
        if slot.is_up:
            slot.actor.close.remote()
        slot.is_up, slot.is_retired = False, True
        self._warnings += (f"{why}. The run goes on without it.",)

    def _let_go(self, slot: Slot) -> Iterator[Event]:
        """End a worker that was told to. Where any machine will do, another waits for a place."""
        yield Left(name=slot.name, num_given_back=slot.num_given_back)
        if slot.seat is None and self._work:
            self._kill(slot)
            slot.num_unfit = 0  # it starts elsewhere
            self._start(slot)
        else:
            self._drop(slot)

    def _settle_start(self, slot: Slot) -> Iterator[Event]:
        reference, slot.ready = slot.ready, None
        try:
            place = ray.get(reference)
        except RayError as error:
            place = Failed(error=in_one_line(error))
            self._nodes = nodes()
        if isinstance(place, Failed):
            yield from self._settle_failed_start(slot, place)
            return
        assert isinstance(place, Place)
        slot.name, slot.node = place.name, place.node
        slot.is_up = slot.is_late = True
        slot.failed_starts = 0
        yield Started(worker=slot.number, name=slot.name, gpus=tuple(map(str, place.gpus)))

    def _settle_failed_start(self, slot: Slot, failed: Failed) -> Iterator[Event]:
        """Try again; a machine that starts no worker ends no run in which others work."""
        self._kill(slot)
        slot.failed_starts += 1
        yield Died(name=slot.name, error=failed.error)
        if self._has_lost_seat(slot):
            self._drop(slot)
            return
        is_alone = not any(other.is_up for other in self._slots)
        if failed.stop is not None and (is_alone or not slot.is_late):
            raise failed.stop
        if slot.failed_starts < self._max_tries and failed.stop is None:
            self._start(slot)
            return
        said = f"a worker could not start, {slot.failed_starts} times: {failed.error}"
        if is_alone:
            raise EncoderError(said)
        self._retire(slot, said)

    def _poll(self) -> Progress:
        self._polled = time.monotonic()
        up = [slot for slot in self._slots if slot.is_up]
        references = {slot.actor.progress.remote(): slot for slot in up}
        answered, _ = (
            ray.wait(list(references), num_returns=len(up), timeout=0.2) if up else ([], [])
        )
        for reference in answered:
            self._take_beat(references[reference], reference)
        clips = sum(slot.clips_before + slot.clips_done for slot in self._slots)
        in_hand = sum(len(slot.in_hand) for slot in self._slots)
        warnings, self._warnings = self._warnings, ()
        return Progress(
            clips_done=self._clips_before + clips,
            workers=len(up),
            shards_in_hand=in_hand,
            warnings=warnings,
        )

    def _take_beat(self, slot: Slot, reference: Any) -> None:
        try:
            beat: Beat = ray.get(reference, timeout=1)
        except RayActorError:
            slot.is_lost = not slot.in_hand  # else that says so, and why
        except GetTimeoutError:
            return
        else:
            slot.clips_done, slot.num_steps = beat.clips_done, beat.num_steps
            slot.is_leaving |= beat.is_leaving
            self._warnings += beat.warnings
