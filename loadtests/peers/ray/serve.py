"""Ray Serve: one replica on a cluster of one CPU, its batching.

`max_batch_size=32` and no waiting time; its switch for throughput is on (contestants.py). The body
is read as bytes and decoded in the batch. Ray's own processes (store, scheduler, proxy, controller)
share the core, as they must where there is one.
"""

import json
import os
import signal
import sys
from pathlib import Path

# The file's own name must not hide the packages: its folder is called `ray`.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).parent]

import numpy as np
import onnxruntime as ort
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class Inference:
    """One ONNX session, fed with the rows of a batch together."""

    def __init__(self, file: str) -> None:
        """Load the file."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(file, options)
        self.input = self.session.get_inputs()[0].name
        self.outputs = [one.name for one in self.session.get_outputs()]

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.0)
    async def run(self, bodies: list[bytes]) -> list[bytes]:
        """Run a batch; every request has one row."""
        rows = np.concatenate([np.array(json.loads(body)["x"], np.float32) for body in bodies])
        arrays = self.session.run(None, {self.input: rows})
        return [
            json.dumps(
                {
                    name: array[i : i + 1].tolist()
                    for name, array in zip(self.outputs, arrays, strict=True)
                }
            ).encode()
            for i in range(len(bodies))
        ]

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        return Response(await self.run(await request.body()), media_type="application/json")


if __name__ == "__main__":
    ray.init(
        num_cpus=1,
        include_dashboard=False,
        configure_logging=False,
        object_store_memory=128 * 1024 * 1024,
        _temp_dir=os.environ["FOLDER"],
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    serve.run(Inference.bind(os.environ["MODEL_FILE"]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.pause()
