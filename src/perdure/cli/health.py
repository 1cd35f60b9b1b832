"""`perdure operator cluster health`."""

from __future__ import annotations

import argparse

import grpc
from grpc_health.v1 import health_pb2

from perdure.cli.main import CommandError

_SERVICE = "temporal.api.workflowservice.v1.WorkflowService"
_TIMEOUT = 5.0


def run(arguments: argparse.Namespace) -> int:
    with grpc.insecure_channel(arguments.address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        request = health_pb2.HealthCheckRequest(service=_SERVICE).SerializeToString()
        try:
            reply = health_pb2.HealthCheckResponse.FromString(check(request, timeout=_TIMEOUT))
        except grpc.RpcError as e:
            why = e.details() if isinstance(e, grpc.Call) else str(e)
            raise CommandError(f"no answer from {arguments.address}: {why}") from None
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    print(status)
    return 0 if status == "SERVING" else 1
