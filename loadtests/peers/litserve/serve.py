"""LitServe: one API process, one worker, its batching.

`max_batch_size=32` with no time-out: the worker takes what is queued and does not wait. The faster
transport between the processes (`fast_queue`) is on, request tracking off.
"""

import os
from typing import Any

import litserve as ls
import numpy as np
import onnxruntime as ort


class Inference(ls.LitAPI):
    """One ONNX session, fed with the rows of a batch together."""

    def setup(self, device: str) -> None:
        """Load the file."""
        del device
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(os.environ["MODEL_FILE"], options)
        self.input = self.session.get_inputs()[0].name
        self.outputs = [one.name for one in self.session.get_outputs()]

    def decode_request(self, request: dict[str, Any]) -> Any:
        """Read a body."""
        return np.array(request["x"], np.float32)

    def batch(self, inputs: list[Any]) -> Any:
        """Join rows; every request has one."""
        return np.concatenate(inputs)

    def predict(self, x: Any) -> Any:
        """Run a batch."""
        return self.session.run(None, {self.input: x})

    def unbatch(self, output: Any) -> list[Any]:
        """Part the answers again."""
        return [[array[i : i + 1] for array in output] for i in range(len(output[0]))]

    def encode_response(self, output: Any) -> dict[str, Any]:
        """Write an answer."""
        return {name: array.tolist() for name, array in zip(self.outputs, output, strict=True)}


if __name__ == "__main__":
    fast = os.environ.get("FAST_QUEUE", "1") == "1"
    rows = int(os.environ.get("BATCH", "32"))
    api = Inference(max_batch_size=rows, batch_timeout=0.0)
    server = ls.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1, fast_queue=fast)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
