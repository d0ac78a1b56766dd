"""The version under inspection, in the child: what was learned of it so far, and how it is run."""

import signal
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from gateway.adapters.onnx.engine import OnnxEngine, sample
from gateway.adapters.onnx.loading import open_session, read_signature, session_options
from gateway.adapters.onnx.memory import trim_memory
from gateway.adapters.sandbox.anatomy import Fault, Model, smallest
from gateway.adapters.sandbox.measuring import Memory
from gateway.adapters.sandbox.wire import Anatomy, Behaviour, Errand
from gateway.core.inspections import InspectionOrder
from gateway.core.oip.parse import parse_infer
from gateway.core.tensors import BYTES, DTYPES, FLOATS, Array, Signature, Tensors, check_inputs

MODEL_FILE: Final = "model.onnx"
SEED: Final = 20_240_229
"""Of random inputs, the same for every version, so that reports can be compared."""


class Subject:
    """One version. Checks read it, and the early ones fill it for the later."""

    def __init__(self, errand: Errand, memory: Memory) -> None:
        """Nothing is known yet."""
        self.order: InspectionOrder = errand.order
        self.is_short = errand.short
        self.run_s = errand.run_s
        self.memory = memory
        self.model: Model | None = None
        self.anatomy = Anatomy()
        self.behaviour = Behaviour()
        self.answers: list[list[Array]] = []
        self._engine: OnnxEngine | None = None
        self._random = np.random.default_rng(SEED)

    @property
    def path(self) -> Path:
        """The model's file."""
        return Path(self.order.folder) / MODEL_FILE

    @property
    def signature(self) -> Signature:
        """What the session told.

        Raises:
            Fault: it was not opened.
        """
        if self.behaviour.signature is None:
            raise Fault("It was not loaded.")
        return self.behaviour.signature

    def parsed(self) -> Model:
        """The parsed model.

        Raises:
            Fault: it could not be parsed.
        """
        if self.model is None:
            raise Fault("It was not parsed.")
        return self.model

    def note(self, **fields: object) -> None:
        """Add to what was seen of its behaviour."""
        self.behaviour = msgspec.structs.replace(self.behaviour, **fields)

    def warm_library(self) -> None:
        """Run a model of ours, so that memory which the library takes for any model is taken."""
        path = Path("smallest.onnx")
        path.write_bytes(smallest())
        engine = self.fresh(path)
        engine.run(sample(engine.signature, 1), ["y"])

    def engine(self) -> OnnxEngine:
        """The version as a worker would run it: the first call opens it and runs it once."""
        if self._engine is None:
            self._engine = self.fresh(self.path)
        return self._engine

    def reopen(self) -> None:
        """Let go of the session and open another: a worker holds a version once."""
        self._engine = None
        trim_memory()
        self.engine()

    def fresh(self, path: Path) -> OnnxEngine:
        """Another session on a model's file, its own or the champion's."""
        session = open_session(str(path), session_options(1))
        signature = read_signature(session)
        signal.setitimer(signal.ITIMER_REAL, self.run_s)
        try:
            return OnnxEngine(session, signature)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def run(self, tensors: Tensors, engine: OnnxEngine | None = None) -> list[Array]:
        """All outputs for an input; what takes too long is the end of this process.

        Raises:
            GatewayError: the model refused, or failed.
        """
        chosen = engine or self.engine()
        names = [spec.name for spec in chosen.signature.outputs]
        signal.setitimer(signal.ITIMER_REAL, self.run_s)
        try:
            return chosen.run(tensors, names)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def zeros(self, rows: int) -> dict[str, Array]:
        """Zeros, false, empty texts."""
        return self._filled(rows, 0)

    def ones(self, rows: int) -> dict[str, Array]:
        """Ones, true, texts of one letter."""
        return self._filled(rows, 1)

    def random(self, rows: int) -> dict[str, Array]:
        """Normal floats; 0 or 1 for what may be an index; letters."""
        made = {}
        for spec in self.signature.inputs:
            shape = sample(self.signature, rows)[spec.name].shape
            if spec.datatype in FLOATS:
                values: Array = self._random.standard_normal(shape)
            else:
                values = self._random.integers(0, 2, shape)
            if spec.datatype == BYTES:
                made[spec.name] = np.where(values == 1, b"a", b"b").astype(DTYPES[BYTES])
            else:
                made[spec.name] = np.asarray(values).astype(DTYPES[spec.datatype])
        return made

    def read(self, request: object, signature: Signature) -> Tensors:
        """The tensors of a request in the form of the protocol.

        Raises:
            InvalidRequest, TooLarge, Unsupported: it is none that this signature allows.
        """
        tensors = parse_infer(msgspec.json.encode(request), None, signature).tensors
        check_inputs(signature, tensors)
        return tensors

    def _filled(self, rows: int, value: int) -> dict[str, Array]:
        made = {}
        for spec in self.signature.inputs:
            shape = sample(self.signature, rows)[spec.name].shape
            filling = (b"a" if value else b"") if spec.datatype == BYTES else value
            made[spec.name] = np.full(shape, filling, DTYPES[spec.datatype])
        return made
