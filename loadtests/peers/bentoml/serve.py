"""BentoML: one service, one API worker, no batching.

Its adaptive batching waits in ticks of a millisecond and made less throughput here than none, at
the same CPU per request. Arrays go in and out as it reads and writes them by itself. Metrics and
access logs are off.
"""

import os
import sys
from pathlib import Path

# The file's own name must not hide the packages: its folder is called `bentoml`.
HERE = Path(__file__).resolve().parent
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE.parent]

import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service(
    workers=1,
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    traffic={"timeout": 30, "max_concurrency": 1024},
)
class Inference:
    """One ONNX session."""

    def __init__(self) -> None:
        """Load the file."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(os.environ["MODEL_FILE"], options)
        self.input = self.session.get_inputs()[0].name
        self.answer = self.session.get_outputs()[-1].name

    @bentoml.api(route="/infer")
    def infer(self, x: np.ndarray) -> np.ndarray:
        """Answer one request with the last output, the probabilities."""
        return self.session.run([self.answer], {self.input: x.astype(np.float32, copy=False)})[0]


if __name__ == "__main__":
    words = ["bentoml", "serve", "serve:Inference", "--host", "127.0.0.1"]
    words += ["--port", os.environ["PORT"], "--working-dir", str(HERE)]
    os.execv(str(Path(sys.executable).parent / "bentoml"), words)
