"""gRPC as Argosy uses it: the only package that sets channel and server options or builds a status.

Knows no service and no message of ours.
"""

import os

# The C core writes informational lines to stderr by default; it reads this when the first channel or server is made.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from cluster.rpc.guard import CallGuard, call_deadline, set_deadline, time_left
from cluster.rpc.private import private_channel, private_listen, private_server
from cluster.rpc.status import abort, service_error_from_status, to_service_error, to_status
from cluster.rpc.tls import TlsFiles, channel_credentials, server_credentials
from cluster.rpc.transport import Link, channel, listen, server

__all__ = [
    "CallGuard",
    "Link",
    "TlsFiles",
    "abort",
    "call_deadline",
    "channel",
    "channel_credentials",
    "listen",
    "private_channel",
    "private_listen",
    "private_server",
    "server",
    "server_credentials",
    "service_error_from_status",
    "set_deadline",
    "time_left",
    "to_service_error",
    "to_status",
]
