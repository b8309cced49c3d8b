"""Argosy's Python client: streams of answers over several routers, that go on when one of them dies.

    from argosy.client import Client

    with Client("127.0.0.1:50051") as client:
        for event in client.chat("smollm2-135m-instruct", "What is the capital of France?", max_tokens=64):
            print(event.delta.text, end="", flush=True)

Needs grpcio, protobuf and googleapis-common-protos, and nothing else of Argosy. `AsyncClient` is the same for asyncio.
"""

from argosy.client.asynchronous import AsyncClient
from argosy.client.blocking import Client
from argosy.client.exchange import Failure, RequestError, RetryPolicy
from argosy.client.requests import chat_request

__all__ = ["AsyncClient", "Client", "Failure", "RequestError", "RetryPolicy", "chat_request"]
