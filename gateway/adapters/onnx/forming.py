"""Forming: write the shared form of a version and time it, in a process of its own.

`python -m gateway.adapters.onnx.forming` reads an `Order` from its standard input. A form may
crash the process that runs it first; then nothing is shared, and nobody notices.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from gateway.adapters.onnx.engine import OnnxEngine, same, sample
from gateway.adapters.onnx.layout import align
from gateway.adapters.onnx.loading import open_engine, open_session, session_options
from gateway.adapters.onnx.sharing import CHOICE, MODEL, TRY_AGAIN, WEIGHTS, Choice, Order, seal
from gateway.core.errors import GatewayError
from gateway.core.models import StoredFile

SIZES: Final = (1, 32)
"""Rows at which both are timed."""
TURNS: Final = 30
LONG_NS: Final = 500_000_000
"""Both are run in turn until so often, or for so long."""
MIN_WEIGHT_BYTES: Final = 1024
"""Smaller tensors stay in the model."""


def form(order: Order, now_ns: Callable[[], int]) -> Choice:
    """Write the form of a version into a folder, with what was found.

    Args:
        order: the version, and an empty folder.
        now_ns: time that this process took.

    Raises:
        GatewayError: onnxruntime does not take the model or its form.
        ValueError: it wrote the form in a way that is not known here.
        OSError: the disk failed.
    """
    folder, artifact = Path(order.folder), order.artifact
    write_form(artifact.path, folder, order.threads)
    files = tuple(seal(path) for path in sorted(folder.iterdir()))
    plain = open_engine(artifact, order.threads)
    shared = open_engine(artifact, order.threads, form=str(folder / MODEL))
    choice = measure(plain, shared, files, now_ns)
    if not choice.equal:
        for file in files:
            (folder / file.path).unlink()
    (folder / CHOICE).write_bytes(msgspec.json.encode(choice))
    seal(folder / CHOICE)
    return choice


def write_form(source: str, folder: Path, threads: int) -> None:
    """Let onnxruntime write a model optimised, with its weights beside it as its kernels want them.

    Args:
        source: path of the model.
        folder: gets the two files of the form, or one if there are no weights worth a file.
        threads: of a run.

    Raises:
        GatewayError, ValueError, OSError: as `form`.
    """
    options = session_options(threads)
    options.optimized_model_filepath = str(folder / MODEL)
    for key, value in {
        "session.optimized_model_external_initializers_file_name": WEIGHTS,
        "session.optimized_model_external_initializers_min_size_in_bytes": str(MIN_WEIGHT_BYTES),
        "session.save_external_prepacked_constant_initializers": "1",
    }.items():
        options.add_session_config_entry(key, value)
    open_session(source, options)
    if (folder / WEIGHTS).exists():
        align(folder / MODEL, folder / WEIGHTS)


def measure(
    plain: OnnxEngine,
    shared: OnnxEngine,
    files: tuple[StoredFile, ...],
    now_ns: Callable[[], int],
) -> Choice:
    """Run both on the same samples, in turn, and keep the fastest run of each."""
    names = [spec.name for spec in plain.signature.outputs]
    fastest: list[dict[int, int]] = [{}, {}]
    for rows in SIZES if plain.signature.batched else (1,):
        tensors = sample(plain.signature, rows)
        if not same(plain.run(tensors, names), shared.run(tensors, names)):
            return Choice(equal=False)
        start = now_ns()
        for _ in range(TURNS):
            for engine, best in zip((plain, shared), fastest, strict=True):
                begun = now_ns()
                engine.run(tensors, names)
                took = now_ns() - begun
                best[rows] = min(took, best.get(rows, took))
            if now_ns() - start > LONG_NS:
                break
    return Choice(equal=True, plain_ns=fastest[0], shared_ns=fastest[1], files=files)


def main() -> int:
    """Carry out one order; the exit code."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    try:
        form(order, time.process_time_ns)  # others on the same cores do not count
    except OSError:
        return TRY_AGAIN
    except (GatewayError, ValueError):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
