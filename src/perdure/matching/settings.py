"""What matching can be told by dynamic configuration, under Temporal's keys and with its defaults."""

from __future__ import annotations

from perdure.clock import MILLISECOND, MINUTE, SECOND
from perdure.config.dynamic import (
    TASK_QUEUE_READ_PARTITIONS,
    TASK_QUEUE_WRITE_PARTITIONS,
    DynamicConfig,
    duration_key,
    float_key,
    int_key,
)

MAX_TASK_QUEUE_IDLE_TIME = duration_key("matching.maxTaskQueueIdleTime", 5 * MINUTE)
POLLER_HISTORY_TTL = duration_key("matching.PollerHistoryTTL", 5 * MINUTE)
BACKLOG_NEGLIGIBLE_AGE = duration_key("matching.backlogNegligibleAge", 5 * SECOND)
QUERY_POLLER_UNAVAILABLE_WINDOW = duration_key("matching.queryPollerUnavailableWindow", 20 * SECOND)
POLLER_SCALING_BACKLOG_AGE = duration_key("matching.pollerScalingMinimumBacklog", 200 * MILLISECOND)
POLLER_SCALING_WAIT_TIME = duration_key("matching.pollerScalingWaitTime", SECOND)
POLLER_SCALING_DECISIONS_PER_SECOND = float_key("matching.pollerScalingDecisionsPerSecond", 10)
POLLER_SCALING_ADD_TO_DISPATCH = float_key("matching.pollerScalingTaskAddToDispatchRatio", 1.2)
GET_TASKS_BATCH_SIZE = int_key("matching.getTasksBatchSize", 1000)
GET_TASKS_RELOAD_AT = int_key("matching.getTasksReloadAt", 100)
MAX_TASK_BATCH_SIZE = int_key("matching.maxTaskBatchSize", 100)
MAX_TASK_DELETE_BATCH_SIZE = int_key("matching.maxTaskDeleteBatchSize", 100)
FORWARDER_MAX_CHILDREN = int_key("matching.forwarderMaxChildrenPerNode", 20)

# A sticky task queue that nobody polled for so long has no worker.
STICKY_POLLER_WINDOW = 10 * SECOND


def partition_counts(config: DynamicConfig, namespace: str, task_queue: str) -> tuple[int, int]:
    """How many partitions of a task queue are read, and written."""
    read = max(1, config.get(TASK_QUEUE_READ_PARTITIONS, namespace, task_queue))
    return read, min(read, max(1, config.get(TASK_QUEUE_WRITE_PARTITIONS, namespace, task_queue)))
