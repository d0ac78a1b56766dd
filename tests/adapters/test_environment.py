import sys

from gateway.adapters.environment import process_environment
from tests.adapters.onnx_parts import output_of


def test_a_process_starts_with_what_its_libraries_read() -> None:
    """Telemetry is off whatever was set, the rest is where nobody chose."""
    environ = process_environment(
        {"PATH": "/bin", "ORT_DISABLE_TELEMETRY": "0", "ORT_LOAD_CONFIG_FROM_MODEL": "1"}
    )
    assert environ == {
        "PATH": "/bin",
        "ORT_DISABLE_TELEMETRY": "1",
        "MALLOC_ARENA_MAX": "2",
        "MALLOC_MMAP_THRESHOLD_": "4194304",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def test_what_an_operator_chose_stands() -> None:
    """Numbers of arenas and threads are theirs to set."""
    assert process_environment({"MALLOC_ARENA_MAX": "8"})["MALLOC_ARENA_MAX"] == "8"


def test_the_environment_is_known_without_the_libraries_that_read_it() -> None:
    """Whoever starts a process must not import them first."""
    script = (
        "import sys, gateway.adapters.environment\n"
        "print({'numpy', 'onnxruntime'} & sys.modules.keys())\n"
    )
    assert output_of(script) == "set()\n"
    assert "onnxruntime" in sys.modules
