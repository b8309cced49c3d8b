"""Asks a router with Triton's own client, as a program: its messages have the names of ours, and one process can hold
only one of them. Prints what it was told as JSON.

python -m tests.support.triton_client ADDRESS MODEL KEY
"""

from __future__ import annotations

import json
import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton


def text(name: str, value: str) -> triton.InferInput:
    tensor = triton.InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([value.encode()], dtype=np.object_))
    return tensor


def parameter(response: Any, name: str) -> Any:
    found = response.get_response().parameters[name]
    return getattr(found, found.WhichOneof("parameter_choice"))


def main(address: str, model: str, key: str) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {key}"}
    told: dict[str, Any] = {}
    with triton.InferenceServerClient(address) as client:
        told["live"] = client.is_server_live()
        told["ready"] = client.is_server_ready() and client.is_model_ready(model, headers=headers)
        told["inputs"] = [tensor.name for tensor in client.get_model_metadata(model, headers=headers).inputs]
        asked = [text("text_input", "Hello"), text("sampling_parameters", '{"max_tokens": 5, "seed": 3}')]
        whole = client.infer(model, asked, headers=headers, request_id="mine")
        told["whole"] = whole.as_numpy("text_output")[0].decode()
        told["id"] = whole.get_response().id
        told["finish_reason"] = parameter(whole, "finish_reason")
        told["tokens"] = parameter(whole, "completion_tokens")
        try:
            client.infer(model, asked, headers=headers, parameters={"temperature": 9.0})
        except triton.InferenceServerException as error:
            told["refusal"] = str(error)
        try:
            client.infer(model, asked)
        except triton.InferenceServerException as error:
            told["stranger"] = str(error)
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)
        wanted = triton.InferInput("stream", [1], "BOOL")
        wanted.set_data_from_numpy(np.array([True]))
        client.async_stream_infer(model, [*asked, wanted])
        pieces = []
        while True:
            result, error = answers.get(timeout=30)
            assert error is None, error
            pieces.append(result.as_numpy("text_output")[0].decode())
            if "triton_final_response" in result.get_response().parameters:
                break
        told["pieces"] = pieces
        client.async_stream_infer(model, [wanted])
        told["stream_refusal"] = str(answers.get(timeout=30)[1])
        client.stop_stream()
    return told


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
