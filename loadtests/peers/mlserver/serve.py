"""MLServer: a runtime of one's own over the Open Inference Protocol, in one process.

`parallel_workers=0` runs the model in the server's own process, which is its fastest with one
core: a pool would copy every request to another process. Adaptive batching is off: it waits for
`max_batch_time` even when idle, and with 32 rows and 1 ms made no more throughput here. Access
logs, debug mode, gzip and metrics are off.
"""

import asyncio
import os
from typing import Any

import numpy as np
import onnxruntime as ort
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Inference(MLModel):
    """One ONNX session."""

    async def load(self) -> bool:
        """Load the file."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(os.environ["MODEL_FILE"], options)
        self.output_names = [one.name for one in self.session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer one request."""
        feeds: dict[str, Any] = {
            one.name: NumpyCodec.decode_input(one).astype(np.float32, copy=False)
            for one in payload.inputs
        }
        arrays = self.session.run(None, feeds)
        return InferenceResponse(
            model_name=self.name,
            outputs=[
                NumpyCodec.encode_output(name, array)
                for name, array in zip(self.output_names, arrays, strict=True)
            ],
        )


async def main() -> None:
    """Serve until the process is ended."""
    settings = Settings(
        debug=False,
        host="127.0.0.1",
        http_port=int(os.environ["PORT"]),
        grpc_port=int(os.environ["SECOND_PORT"]),
        metrics_endpoint=None,
        parallel_workers=0,
        gzip_enabled=False,
        load_models_at_startup=False,
    )
    model = ModelSettings(name=os.environ["MODEL_NAME"], implementation=Inference)
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(main())
