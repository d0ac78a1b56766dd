"""mosec: its Rust front, one worker process, its own dynamic batching.

A batch of up to 32 is taken after at most 1 ms (`max_wait_time` is in whole milliseconds; 0 would
mean its default of 10). The body is read and written with orjson rather than the standard library.
With DEFAULTS set it runs as its first example does: its own JSON, and no batching.
"""

import os
from typing import Any

import numpy as np
import onnxruntime as ort
import orjson
from mosec import Server, Worker


class Documented(Worker):
    """One ONNX session, fed with the rows of a batch together."""

    def __init__(self) -> None:
        """Load the file."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(os.environ["MODEL_FILE"], options)
        self.input = self.session.get_inputs()[0].name
        self.outputs = [one.name for one in self.session.get_outputs()]

    def run(self, rows: list[Any]) -> list[dict[str, Any]]:
        """Run a batch of arrays with one row each; the outputs of each, by name."""
        arrays = self.session.run(None, {self.input: np.concatenate(rows)})
        return [
            {name: array[i : i + 1] for name, array in zip(self.outputs, arrays, strict=True)}
            for i in range(len(rows))
        ]

    def forward(self, data: Any) -> Any:
        """Answer a document with lists, as JSON has no arrays."""
        found = self.run([np.array(data["x"], np.float32)])[0]
        return {name: value.tolist() for name, value in found.items()}


class Inference(Documented):
    """The same with a faster JSON, which reads and writes arrays."""

    def deserialize(self, data: bytes) -> Any:
        """Read a body."""
        return np.array(orjson.loads(data)["x"], np.float32)

    def serialize(self, data: Any) -> bytes:
        """Write an answer."""
        return orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)

    def forward(self, data: Any) -> Any:
        """Answer a batch of arrays."""
        return self.run(data)


if __name__ == "__main__":
    os.environ["MOSEC_PORT"] = os.environ["PORT"]
    os.environ["MOSEC_ADDRESS"] = "127.0.0.1"
    os.environ["MOSEC_LOG_LEVEL"] = "warning"
    server = Server()
    if os.environ.get("DEFAULTS"):
        server.append_worker(Documented, num=1)
    else:
        server.append_worker(Inference, num=1, max_batch_size=32, max_wait_time=1)
    server.run()
