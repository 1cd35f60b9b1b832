"""What DescribeTaskQueue tells, from what each partition of a task queue tells of itself."""

from __future__ import annotations

from collections.abc import Sequence

from temporalio.api.enums.v1 import BuildIdTaskReachability, RateLimitSource
from temporalio.api.taskqueue.v1 import (
    PollerInfo,
    TaskIdBlock,
    TaskQueueStats,
    TaskQueueStatus,
    TaskQueueTypeInfo,
    TaskQueueVersionInfo,
)
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest, DescribeTaskQueueResponse

from perdure.clock import from_duration, to_duration
from perdure.matching.partition import Partition
from perdure.matching.pollers import UNLIMITED_RATE


def of_partition(partition: Partition, now: int, earliest: int) -> DescribeTaskQueueResponse:
    """All that may be asked. earliest: since when pollers count."""
    response = DescribeTaskQueueResponse(pollers=partition.pollers.infos(earliest))
    response.task_queue_status.CopyFrom(_status(partition))
    for priority, some in _stats_by_priority(partition, now).items():
        response.stats_by_priority_key[priority].CopyFrom(some)
    response.effective_rate_limit.requests_per_second = _rate(partition)
    response.effective_rate_limit.rate_limit_source = (
        RateLimitSource.RATE_LIMIT_SOURCE_SYSTEM
        if partition.worker_rate is None
        else RateLimitSource.RATE_LIMIT_SOURCE_WORKER
    )
    return response


def _pollers(parts: Sequence[DescribeTaskQueueResponse]) -> list[PollerInfo]:
    """One per identity, as it was seen last, lately seen first."""
    latest: dict[str, PollerInfo] = {}
    for part in parts:
        for info in part.pollers:
            known = latest.get(info.identity)
            if known is None or _seen_at(known) < _seen_at(info):
                latest[info.identity] = info
    return sorted(latest.values(), key=_seen_at, reverse=True)


def _seen_at(info: PollerInfo) -> tuple[int, int]:
    return info.last_access_time.seconds, info.last_access_time.nanos


def _stats_by_priority(partition: Partition, now: int) -> dict[int, TaskQueueStats]:
    result: dict[int, TaskQueueStats] = {}
    limited = partition.rate_limited(now)
    for priority, rates in partition.rates.items():
        result[priority] = TaskQueueStats(
            tasks_add_rate=rates.added.per_second(now), tasks_dispatch_rate=rates.dispatched.per_second(now)
        )
    for priority, waiting in partition.waiting_by_priority().items():
        result.setdefault(priority, TaskQueueStats()).approximate_backlog_count = waiting
    oldest = partition.oldest(now)
    for stats in result.values():
        stats.rate_limiting_active = limited
        if oldest is not None and stats.approximate_backlog_count:
            stats.approximate_backlog_age.CopyFrom(to_duration(max(0, now - oldest)))
    return result


def _merge(into: TaskQueueStats, other: TaskQueueStats) -> None:
    into.approximate_backlog_count += other.approximate_backlog_count
    into.tasks_add_rate += other.tasks_add_rate
    into.tasks_dispatch_rate += other.tasks_dispatch_rate
    into.rate_limiting_active = into.rate_limiting_active or other.rate_limiting_active
    if from_duration(other.approximate_backlog_age) > from_duration(into.approximate_backlog_age):
        into.approximate_backlog_age.CopyFrom(other.approximate_backlog_age)


def _stats(parts: Sequence[DescribeTaskQueueResponse]) -> tuple[TaskQueueStats, dict[int, TaskQueueStats]]:
    """Of all together, and by priority key."""
    total = TaskQueueStats(approximate_backlog_age=to_duration(0))
    by_priority: dict[int, TaskQueueStats] = {}
    for part in parts:
        for priority, some in part.stats_by_priority_key.items():
            _merge(total, some)
            _merge(by_priority.setdefault(priority, TaskQueueStats(approximate_backlog_age=to_duration(0))), some)
    return total, by_priority


def _status(partition: Partition) -> TaskQueueStatus:
    rate = _rate(partition)
    backlog = partition.backlog
    if backlog is None:
        waiting = sum(partition.waiting_by_priority().values())
        return TaskQueueStatus(backlog_count_hint=waiting, rate_per_second=rate)
    start, end = backlog.block
    return TaskQueueStatus(
        backlog_count_hint=max(0, backlog.count),
        read_level=backlog.read_level,
        ack_level=backlog.ack_level,
        rate_per_second=rate,
        task_id_block=TaskIdBlock(start_id=start, end_id=end),
    )


def _rate(partition: Partition) -> float:
    return UNLIMITED_RATE if partition.worker_rate is None else partition.worker_rate


def default_mode(
    request: DescribeTaskQueueRequest, parts: Sequence[DescribeTaskQueueResponse]
) -> DescribeTaskQueueResponse:
    """parts: of all partitions of the asked type (see `of_partition`), the root first."""
    root = parts[0]
    response = DescribeTaskQueueResponse(pollers=_pollers(parts), effective_rate_limit=root.effective_rate_limit)
    if request.include_task_queue_status:
        response.task_queue_status.CopyFrom(root.task_queue_status)
        response.task_queue_status.backlog_count_hint = sum(p.task_queue_status.backlog_count_hint for p in parts)
    if request.report_stats:
        total, by_priority = _stats(parts)
        response.stats.CopyFrom(total)
        for priority, some in by_priority.items():
            response.stats_by_priority_key[priority].CopyFrom(some)
    if request.report_config:
        response.config.SetInParent()
    return response


def enhanced_mode(
    request: DescribeTaskQueueRequest, by_type: dict[int, Sequence[DescribeTaskQueueResponse]]
) -> DescribeTaskQueueResponse:
    """by_type: what the partitions of each asked type tell. Tasks and workers without a version are under the build id
    ""."""
    response = DescribeTaskQueueResponse()
    wanted = list(request.versions.build_ids)
    if request.versions.unversioned or request.versions.all_active or not request.HasField("versions"):
        wanted.append("")
    for build_id in wanted:
        info = TaskQueueVersionInfo()
        for task_queue_type, parts in by_type.items():
            of_type = TaskQueueTypeInfo()
            if request.report_pollers:
                of_type.pollers.extend(p for p in _pollers(parts) if _build_id(p) == build_id)
            if request.report_stats:
                total = TaskQueueStats(approximate_backlog_age=to_duration(0))
                if not build_id:
                    total, _ = _stats(parts)
                of_type.stats.CopyFrom(total)
            info.types_info[task_queue_type].CopyFrom(of_type)
        if request.report_task_reachability and not build_id:
            info.task_reachability = BuildIdTaskReachability.BUILD_ID_TASK_REACHABILITY_REACHABLE
        response.versions_info[build_id].CopyFrom(info)
    return response


def _build_id(info: PollerInfo) -> str:
    capabilities = info.worker_version_capabilities
    return capabilities.build_id if capabilities.use_versioning else ""
