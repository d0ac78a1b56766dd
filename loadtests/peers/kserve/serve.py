"""KServe's Python server: one uvicorn process over the Open Inference Protocol, no gRPC.

It batches in a separate sidecar for its older protocol only, so there is nothing to set here. The
logs of accesses and latencies are off.
"""

import logging
import os
from typing import Any

import numpy as np
import onnxruntime as ort
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.utils.utils import generate_uuid

DATATYPES = {"float32": "FP32", "int64": "INT64"}


class Inference(Model):
    """One ONNX session."""

    def load(self) -> bool:
        """Load the file."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(os.environ["MODEL_FILE"], options)
        self.outputs = [one.name for one in self.session.get_outputs()]
        self.ready = True
        return True

    async def predict(
        self, payload: InferRequest, headers: Any = None, response_headers: Any = None
    ) -> InferResponse:
        """Answer one request."""
        del headers, response_headers
        feeds = {one.name: one.as_numpy().astype(np.float32) for one in payload.inputs}
        outputs = []
        for name, array in zip(self.outputs, self.session.run(None, feeds), strict=True):
            output = InferOutput(name, list(array.shape), DATATYPES[str(array.dtype)])
            output.set_data_from_numpy(array, binary_data=False)
            outputs.append(output)
        return InferResponse(payload.id or generate_uuid(), self.name, outputs)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    model = Inference(os.environ["MODEL_NAME"])
    model.load()
    ModelServer(
        http_port=int(os.environ["PORT"]),
        workers=1,
        enable_grpc=False,
        enable_latency_logging=False,
        event_loop="uvloop",
    ).start([model])
