"""LitServe: one API process, one worker, no batching, no request tracking.

On one core and with models this cheap its batching costs more than it saves (CPU per request 3.1 to
3.7 ms against 1.9 ms), and its other transport between the processes (`fast_queue`) saves nothing.
"""

import os
from typing import Any

import litserve as ls
import numpy as np
import onnxruntime as ort


class Inference(ls.LitAPI):
    """One ONNX session."""

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

    def predict(self, x: Any) -> Any:
        """Run the model."""
        return self.session.run(None, {self.input: x})

    def encode_response(self, output: Any) -> dict[str, Any]:
        """Write an answer."""
        return {name: array.tolist() for name, array in zip(self.outputs, output, strict=True)}


if __name__ == "__main__":
    api = Inference()
    server = ls.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
