"""Whether something that failed is tried again, and when. The same rules for activities and for workflows."""

from __future__ import annotations

import math
from typing import NamedTuple

from temporalio.api.common.v1 import RetryPolicy
from temporalio.api.enums.v1 import RetryState, TimeoutType
from temporalio.api.failure.v1 import Failure

from perdure.clock import from_duration, to_duration
from perdure.config.dynamic import RetryDefaults
from perdure.history.core.attributes import MAX_DURATION, invalid_duration

# By the names under which a policy's non-retryable types may list them.
_RETRYABLE_TIMEOUTS: dict[int, str] = {
    TimeoutType.TIMEOUT_TYPE_START_TO_CLOSE: "TemporalTimeout:StartToClose",
    TimeoutType.TIMEOUT_TYPE_HEARTBEAT: "TemporalTimeout:Heartbeat",
}
_TIMEOUTS = frozenset(
    name
    for constant in TimeoutType.keys()[1:]
    for name in (constant, constant.removeprefix("TIMEOUT_TYPE_").title().replace("_", ""))
)
_DEFAULTS = RetryDefaults()
_LONGEST = 10**18  # about 30 years: a wait beyond what can be counted is as good as this


class Decision(NamedTuple):
    """wait: nanoseconds until the next attempt, None when there is none. state: what the closing event says."""

    wait: int | None
    state: RetryState.ValueType


def decide(policy: RetryPolicy, attempt: int, now: int, expiration: int, failure: Failure | None) -> Decision:
    """After attempt `attempt` (from 1) failed at `now`. expiration: no attempt may begin after it, 0 for never.
    policy: with its defaults filled in."""
    if failure is not None and not _retryable(failure, policy):
        return Decision(None, RetryState.RETRY_STATE_NON_RETRYABLE_FAILURE)
    if policy.maximum_attempts and attempt >= policy.maximum_attempts:
        return Decision(None, RetryState.RETRY_STATE_MAXIMUM_ATTEMPTS_REACHED)
    wait = _wait(policy, attempt, failure)
    if wait is None or (expiration and now + wait > expiration):
        return Decision(None, RetryState.RETRY_STATE_TIMEOUT)
    return Decision(wait, RetryState.RETRY_STATE_IN_PROGRESS)


def _wait(policy: RetryPolicy, attempt: int, failure: Failure | None) -> int | None:
    longest = from_duration(policy.maximum_interval)
    if (
        failure is not None
        and failure.HasField("application_failure_info")
        and failure.application_failure_info.HasField("next_retry_delay")
    ):
        wait = from_duration(failure.application_failure_info.next_retry_delay)
    else:
        try:
            wait = int(from_duration(policy.initial_interval) * policy.backoff_coefficient ** (attempt - 1))
        except OverflowError:
            wait = _LONGEST
    wait = min(wait, _LONGEST)
    if longest and (wait <= 0 or wait > longest):
        return longest
    return wait if wait > 0 else None


def _retryable(failure: Failure, policy: RetryPolicy) -> bool:
    """Terminations and cancellations are final; timeouts of a started attempt are not; otherwise the failure itself and
    the policy's types say."""
    if failure.HasField("terminated_failure_info") or failure.HasField("canceled_failure_info"):
        return False
    types = policy.non_retryable_error_types
    if failure.HasField("timeout_failure_info"):
        name = _RETRYABLE_TIMEOUTS.get(failure.timeout_failure_info.timeout_type)
        return name is not None and name not in types
    if failure.HasField("server_failure_info"):
        return not failure.server_failure_info.non_retryable
    if failure.HasField("application_failure_info"):
        info = failure.application_failure_info
        return not info.non_retryable and info.type not in types
    return True


def with_defaults(policy: RetryPolicy, defaults: RetryDefaults = _DEFAULTS) -> RetryPolicy:
    """A copy with what is not set filled in: 1 s, doubling, at most 100 times the first wait, no limit of attempts."""
    full = RetryPolicy()
    full.CopyFrom(policy)
    if not from_duration(full.initial_interval):
        full.initial_interval.CopyFrom(to_duration(defaults.initial_interval))
    if not full.backoff_coefficient:
        full.backoff_coefficient = defaults.backoff_coefficient
    if not from_duration(full.maximum_interval):
        longest = defaults.maximum_factor * max(0, min(from_duration(full.initial_interval), MAX_DURATION))
        full.maximum_interval.CopyFrom(to_duration(min(round(longest), MAX_DURATION)))
    if not full.maximum_attempts:
        full.maximum_attempts = defaults.maximum_attempts
    return full


def invalid(policy: RetryPolicy) -> str | None:
    """Why a policy as it came from outside cannot be taken; None when it can. Intervals above a hundred years are cut
    to that, in place."""
    if policy.maximum_attempts == 1:
        return None  # never used
    if wrong := invalid_duration(policy.initial_interval):
        return f"invalid InitialInterval set on retry policy: {wrong}"
    if policy.backoff_coefficient and not policy.backoff_coefficient >= 1:
        return "BackoffCoefficient cannot be less than 1 on retry policy."
    if math.isinf(policy.backoff_coefficient):
        return "BackoffCoefficient must be finite on retry policy."
    if wrong := invalid_duration(policy.maximum_interval):
        return f"invalid MaximumInterval set on retry policy: {wrong}"
    longest = from_duration(policy.maximum_interval)
    if longest and longest < from_duration(policy.initial_interval):
        return "MaximumInterval cannot be less than InitialInterval on retry policy."
    if policy.maximum_attempts < 0:
        return "MaximumAttempts cannot be negative on retry policy."
    for kind in policy.non_retryable_error_types:
        name = kind.removeprefix("TemporalTimeout:")
        if name != kind and name not in _TIMEOUTS:
            return f"Invalid timeout type value: {name}."
    return None
