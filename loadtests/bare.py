"""The bare endpoint: what an engineer writes in an afternoon who knows the fast libraries.

    python loadtests/bare.py STORE PORT

uvicorn with uvloop and httptools, orjson, numpy, `InferenceSession.run`, and nothing else: no
batching, no validation, no telemetry. It serves version 1 of every model in the store over the
Open Inference Protocol, with JSON or binary tensors in and out.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import orjson
import uvicorn

DTYPES = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "INT32": np.int32}
NAMES = {"tensor(float)": "FP32", "tensor(double)": "FP64", "tensor(int64)": "INT64"}
SPLIT = b"inference-header-content-length"
OK_JSON = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json")],
}


class Model:
    """One session, and what its answers are called."""

    def __init__(self, name: str, path: Path) -> None:
        """Load the file, one thread, no spinning."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.name = name
        self.outputs = [(one.name, NAMES[one.type]) for one in self.session.get_outputs()]

    def infer(self, head: bytes, tail: memoryview | None) -> tuple[bytes, list[Any]]:
        """The answer's JSON part, and its binary tensors where they were asked for."""
        request = orjson.loads(head)
        feeds, start = {}, 0
        for tensor in request["inputs"]:
            dtype = DTYPES[tensor["datatype"]]
            size = tensor.get("parameters", {}).get("binary_data_size")
            if size is None or tail is None:
                array = np.array(tensor["data"], dtype)
            else:
                array = np.frombuffer(tail[start : start + size], dtype)
                start += size
            feeds[tensor["name"]] = array.reshape(tensor["shape"])
        arrays = self.session.run(None, feeds)
        binary = request.get("parameters", {}).get("binary_data_output", False)
        outputs: list[dict[str, Any]] = []
        for (name, datatype), array in zip(self.outputs, arrays, strict=True):
            output = {"name": name, "datatype": datatype, "shape": array.shape}
            if binary:
                output["parameters"] = {"binary_data_size": array.nbytes}
            else:
                output["data"] = array.ravel()
            outputs.append(output)
        answer = {"model_name": self.name, "model_version": "1", "outputs": outputs}
        written = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
        return written, arrays if binary else []


class Endpoint:
    """The application: POST /v2/models/<name>/infer, and 200 to everything else."""

    def __init__(self, store: Path) -> None:
        """Load every model that lies in the store."""
        self.models = {
            f"/v2/models/{path.parts[-3]}/infer": Model(path.parts[-3], path)
            for path in store.glob("*/1/model.onnx")
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        model = self.models.get(scope["path"])
        if model is None:
            await send(OK_JSON)
            await send({"type": "http.response.body", "body": b"{}"})
            return
        message = await receive()
        body = message["body"]
        if message["more_body"]:
            parts = [body]
            while message["more_body"]:
                message = await receive()
                parts.append(message["body"])
            body = b"".join(parts)
        split = next((int(value) for name, value in scope["headers"] if name == SPLIT), None)
        if split is None:
            written, arrays = model.infer(body, None)
        else:
            written, arrays = model.infer(body[:split], memoryview(body)[split:])
        if not arrays:
            length = (b"content-length", b"%d" % len(written))
            start = {**OK_JSON, "headers": [*OK_JSON["headers"], length]}
            await send(start)
            await send({"type": "http.response.body", "body": written})
            return
        whole = b"".join([written, *(array.tobytes() for array in arrays)])
        headers = [
            (b"content-type", b"application/octet-stream"),
            (SPLIT, b"%d" % len(written)),
            (b"content-length", b"%d" % len(whole)),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": whole})


if __name__ == "__main__":
    uvicorn.run(
        Endpoint(Path(sys.argv[1])),
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        date_header=False,
        server_header=False,
    )
