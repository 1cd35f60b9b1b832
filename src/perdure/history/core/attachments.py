"""What is attached to a running run from outside: request ids that dedupe to it, callbacks, changed options."""

from __future__ import annotations

from collections.abc import Sequence

from temporalio.api.common.v1 import Callback, Link
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

from perdure.history.core import buffering
from perdure.history.core.apply import applies
from perdure.history.core.state import Kind, RequestIdRecord, State
from perdure.history.core.txn import Txn

_UPDATED = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_OPTIONS_UPDATED


def attach(txn: Txn, *, request_id: str = "", callbacks: Sequence[Callback] = (), links: Sequence[Link] = ()) -> None:
    """Records WorkflowExecutionOptionsUpdated. It wakes no worker."""
    event = txn.event(_UPDATED)
    attributes = event.workflow_execution_options_updated_event_attributes
    attributes.attached_request_id = request_id
    attributes.attached_completion_callbacks.extend(callbacks)
    event.links.extend(links)
    event.worker_may_ignore = True
    txn.record(event)


@applies(_UPDATED)
def _updated(state: State, event: HistoryEvent) -> None:
    attributes = event.workflow_execution_options_updated_event_attributes
    request_id = attributes.attached_request_id
    if request_id:
        state.put(Kind.REQUEST_ID, request_id, RequestIdRecord(event.event_type, event.event_id))
    info = state.info
    changed = False
    if attributes.attached_completion_callbacks:
        info.completion_callbacks_proto.extend(c.SerializeToString() for c in attributes.attached_completion_callbacks)
        changed = True
    if attributes.unset_versioning_override:
        info.versioning_override_proto = b""
        changed = True
    elif attributes.HasField("versioning_override"):
        info.versioning_override_proto = attributes.versioning_override.SerializeToString()
        changed = True
    if attributes.HasField("priority"):
        info.priority_proto = attributes.priority.SerializeToString()
        changed = True
    if changed:
        state.put_info()


@buffering.on_assigned(_UPDATED)
def _assigned(state: State, event: HistoryEvent) -> None:
    request_id = event.workflow_execution_options_updated_event_attributes.attached_request_id
    if request_id:
        state.put(Kind.REQUEST_ID, request_id, RequestIdRecord(event.event_type, event.event_id))
